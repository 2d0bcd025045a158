"""Does a model learn as well with each codec? ``python benchmarks/codecs.py [CODEC ...]``.

For every seed, four agents train the ``digits`` CNN once without a codec and once with each of them, on the same
samples in the same batches. The claim is that the mean accuracies differ by at most one point. Each codec is listed as
one would use it (``DEFAULTS``); what loses more in this training is listed beside (``HARDER``).
Numbers go to docs/results/codecs.json, and docs/results/codecs.md is written from all that is there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import msgspec

from stretto import workloads
from stretto.cli.launching import launch
from stretto.workloads.result import Job, Result, machine, versions

DENSE = "identity"
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
    "feedback(topk(0.1))",
    "feedback(topk(0.1, sampled=true))",
    "feedback(topk(0.1)+int4)",
    "feedback(threshold(0.01))",
    "feedback(lowrank(4))",
    "feedback(dct_topk(0.1))",
    "per_layer({biases: identity, norms: identity}, rest=int4)",
)
HARDER = (
    "ternary",
    "feedback(sign)",
    "feedback(topk(0.01))",
    "feedback(topk(0.05)+int4)",
    "feedback(randomk(0.25, scaled=false))",
    "feedback(dct_topk(0.05))",
    "lowrank(4)",
)
AGENTS = 4
ALLOWED = 1.0
"""Points of accuracy between the means."""
RESULTS = Path(__file__).parents[1] / "docs" / "results"
NUMBERS, PAGE = RESULTS / "codecs.json", RESULTS / "codecs.md"


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """With one codec: accuracies in % by seed, bytes that an agent sends in a step, CPU milliseconds of that."""

    accuracies: list[float]
    sent: float
    codec_ms: float

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """All codecs so far, and where they were measured."""

    seeds: int
    epochs: int
    where: str
    codecs: dict[str, Learned]


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


def learned(results: list[Result]) -> Learned:
    return Learned(
        accuracies=[100 * r.accuracy for r in results],
        sent=statistics.median(statistics.fmean(r.sent_training) / r.steps for r in results),
        codec_ms=statistics.median(1e3 * statistics.fmean(r.codec_seconds) / r.steps for r in results),
    )


def page(found: Measured) -> str:
    dense = found.codecs[DENSE]
    lines = [
        "# Training with every codec",
        "",
        f"`digits`, CNN, four agents over tcp, {found.epochs} epochs, global batches of 128, Adam. Accuracy on 360",
        f"test images in %, mean over seeds 0 to {found.seeds - 1} (each seed in brackets); one image is",
        f"{100 / 360:.2f} points. Bytes are what an agent sends in a step, all frames and what rides along included;",
        "CPU is what the codec takes of it. Measured with",
        f"`python benchmarks/codecs.py --seeds {found.seeds} --epochs {found.epochs}` on {found.where}.",
    ]
    for title, codecs in (("As one would use them", (DENSE, *DEFAULTS)), ("What loses more here", HARDER)):
        lines += ["", f"## {title}", ""]
        lines += [
            f"| codec | accuracy | difference | within {ALLOWED:g} | bytes a step | of those without | CPU, ms a step |"
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [_row(codec, found.codecs[codec], dense) for codec in codecs if codec in found.codecs]
    return "\n".join(lines) + "\n"


def _row(codec: str, one: Learned, dense: Learned) -> str:
    apart = one.mean - dense.mean
    accuracies = f"{one.mean:.2f} ({', '.join(f'{a:.1f}' for a in one.accuracies)})"
    reached = "yes" if abs(apart) <= ALLOWED else "no"
    saved = f"{one.sent:,.0f} | 1/{dense.sent / one.sent:.1f}"
    return f"| `{codec}` | {accuracies} | {apart:+.2f} | {reached} | {saved} | {one.codec_ms:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="*", metavar="CODEC", default=[DENSE, *DEFAULTS, *HARDER])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    asked = parser.parse_args()
    runs: dict[str, list[Result]] = {codec: [] for codec in asked.codecs}
    for seed in range(asked.seeds):
        for codec, results in runs.items():
            results.append(train(f"allreduce(topology=ring, codec={codec})", seed, asked.epochs))
            print(f"seed {seed}, {codec}: {100 * results[-1].accuracy:.1f} %", flush=True)
    before = msgspec.json.decode(NUMBERS.read_bytes(), type=Measured).codecs if NUMBERS.exists() else {}
    found = Measured(
        seeds=asked.seeds,
        epochs=asked.epochs,
        where=", ".join(f"{k} {v}" for k, v in (versions() | machine()).items()),
        codecs=before | {codec: learned(results) for codec, results in runs.items()},
    )
    NUMBERS.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    PAGE.write_text(page(found), encoding="utf-8")
    dense = found.codecs[DENSE].mean
    apart = [c for c in DEFAULTS if c in found.codecs and abs(found.codecs[c].mean - dense) > ALLOWED]
    if apart:
        print(f"{', '.join(apart)}: more than {ALLOWED:g} points apart; see {PAGE}", file=sys.stderr)
    return bool(apart)


if __name__ == "__main__":
    sys.exit(main())
