"""Do four agents learn as well as one process? ``python benchmarks/accuracy.py`` writes docs/results/accuracy.md.

For every model and seed, one process and four agents train ``digits`` on the same samples in the same batches, and are
tested on the same images. The claim is that the mean accuracies differ by at most half a point.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from stretto import workloads
from stretto.cli.launching import launch
from stretto.workloads.result import Job, Result, machine, versions

MODELS = ("mlp", "cnn", "lstm")
AGENTS = 4
ALLOWED = 0.5
"""Points of accuracy between the means."""
PAGE = Path(__file__).parents[1] / "docs" / "results" / "accuracy.md"


def train(model: str, agents: int, seed: int, epochs: int, link: str) -> Result:
    workload = workloads.get("digits")
    job = Job(
        workload="digits",
        model=model,
        strategy="allreduce",
        link=link,
        batch_size=workload.batch_of(agents),
        seed=seed,
        folder="",
        epochs=epochs,
    )
    return launch(job, agents, lambda progress: None, print)


def points(results: list[Result]) -> list[float]:
    return [100 * r.accuracy for r in results]


def page(rows: list[tuple[str, list[float], list[float]]], seeds: int, epochs: int, link: str) -> str:
    command = f"python benchmarks/accuracy.py --seeds {seeds} --epochs {epochs} --link {link}"
    described = ", ".join(f"{k} {v}" for k, v in (versions() | machine()).items())
    lines = [
        "# Four agents learn as well as one process",
        "",
        f"`digits`, {epochs} epochs, global batches of 128, link {link}; accuracy on 360 test images in %,",
        f"mean over seeds 0 to {seeds - 1}",
        f"(each seed in brackets). One image is {100 / 360:.2f} points. Measured with `{command}` on {described}.",
        "",
        "| model | one process | four agents | difference of the means |",
        "|---|---|---|---|",
    ]
    for model, one, four in rows:
        difference = statistics.mean(four) - statistics.mean(one)
        lines.append(f"| {model} | {_spelled(one)} | {_spelled(four)} | {difference:+.2f} |")
    return "\n".join(lines) + "\n"


def _spelled(accuracies: list[float]) -> str:
    return f"{statistics.mean(accuracies):.2f} ({', '.join(f'{a:.1f}' for a in accuracies)})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--link", default="tcp")
    asked = parser.parse_args()
    rows = []
    for model in MODELS:
        runs = [
            (train(model, 1, seed, asked.epochs, "auto"), train(model, AGENTS, seed, asked.epochs, asked.link))
            for seed in range(asked.seeds)
        ]
        one, four = points([a for a, _ in runs]), points([b for _, b in runs])
        print(f"{model}: one process {_spelled(one)}, four agents {_spelled(four)}", flush=True)
        rows.append((model, one, four))
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(rows, asked.seeds, asked.epochs, asked.link))
    apart = [m for m, one, four in rows if abs(statistics.mean(one) - statistics.mean(four)) > ALLOWED]
    if apart:
        print(f"{', '.join(apart)}: more than {ALLOWED} points apart; see {PAGE}", file=sys.stderr)
    return bool(apart)


if __name__ == "__main__":
    sys.exit(main())
