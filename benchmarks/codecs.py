"""Does a model learn as well with each codec? ``python benchmarks/codecs.py`` writes docs/results/codecs.md.

For every seed, four agents train the ``digits`` CNN once without a codec and once with each of them, on the same
samples in the same batches. The claim is that the mean accuracies differ by at most one point. Each codec is listed as
one would use it: what drops or rounds much is within feedback, and what is noisy is so little enough to do without.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from stretto import workloads
from stretto.cli.launching import launch
from stretto.workloads.result import Job, Result, machine, versions

DEFAULTS = (
    "bf16",
    "fp16",
    "fp8",
    "int8",
    "int8(stochastic=true)",
    "int4",
    "feedback(int4)",
    "feedback(int2)",
    "natural",
    "ternary",
    "feedback(sign)",
    "feedback(topk(0.01))",
    "feedback(topk(0.01, sampled=true))",
    "feedback(topk(0.05)+int4)",
    "feedback(randomk(0.05, scaled=false))",
    "feedback(threshold(0.01))",
    "lowrank(4)",
    "feedback(lowrank(4))",
    "feedback(dct_topk(0.05))",
    "per_layer({biases: identity, norms: identity}, rest=int4)",
)
AGENTS = 4
ALLOWED = 1.0
"""Points of accuracy between the means."""
PAGE = Path(__file__).parents[1] / "docs" / "results" / "codecs.md"


def train(strategy: str, seed: int, epochs: int) -> Result:
    workload = workloads.get("digits")
    job = Job(
        workload="digits",
        model="cnn",
        strategy=strategy,
        link="tcp",
        batch_size=workload.batch_of(AGENTS),
        seed=seed,
        folder="",
        epochs=epochs,
    )
    return launch(job, AGENTS, lambda progress: None, print)


def page(runs: dict[str, list[Result]], seeds: int, epochs: int) -> str:
    command = f"python benchmarks/codecs.py --seeds {seeds} --epochs {epochs}"
    described = ", ".join(f"{k} {v}" for k, v in (versions() | machine()).items())
    dense = runs["identity"]
    lines = [
        "# Training with every codec",
        "",
        f"`digits`, CNN, four agents over tcp, {epochs} epochs, global batches of 128. Accuracy on 360 test images in",
        f"%, mean over seeds 0 to {seeds - 1} (each seed in brackets); one image is {100 / 360:.2f} points. Bytes are",
        "what an agent sends in a step, all frames and what rides along included. CPU is what the codec takes of it.",
        f"Measured with `{command}` on {described}.",
        "",
        f"| codec | accuracy | difference | within {ALLOWED:g} | bytes a step | of those without | codec, ms a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for codec, results in runs.items():
        apart = statistics.mean(points(results)) - statistics.mean(points(dense))
        sent, before = _sent(results), _sent(dense)
        cpu = statistics.median(1e3 * statistics.fmean(r.codec_seconds) / r.steps for r in results)
        lines.append(
            f"| `{codec}` | {_spelled(points(results))} | {apart:+.2f} | {'yes' if abs(apart) <= ALLOWED else 'no'} | "
            f"{sent:,.0f} | 1/{before / sent:.1f} | {cpu:.2f} |"
        )
    return "\n".join(lines) + "\n"


def points(results: list[Result]) -> list[float]:
    return [100 * r.accuracy for r in results]


def _sent(results: list[Result]) -> float:
    return statistics.median(statistics.fmean(r.sent_training) / r.steps for r in results)


def _spelled(accuracies: list[float]) -> str:
    return f"{statistics.mean(accuracies):.2f} ({', '.join(f'{a:.1f}' for a in accuracies)})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    asked = parser.parse_args()
    runs: dict[str, list[Result]] = {codec: [] for codec in ("identity", *DEFAULTS)}
    for seed in range(asked.seeds):
        for codec, results in runs.items():
            results.append(train(f"allreduce(topology=ring, codec={codec})", seed, asked.epochs))
            print(f"seed {seed}, {codec}: {points(results)[-1]:.1f} %", flush=True)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(runs, asked.seeds, asked.epochs))
    means = {codec: statistics.mean(points(results)) for codec, results in runs.items()}
    apart = [codec for codec, mean in means.items() if abs(mean - means["identity"]) > ALLOWED]
    if apart:
        print(f"{', '.join(apart)}: more than {ALLOWED:g} points apart; see {PAGE}", file=sys.stderr)
    return bool(apart)


if __name__ == "__main__":
    sys.exit(main())
