"""``stretto compare WORKLOAD --strategies "a; b"``: each in turn, over several seeds, in one table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

import click
import msgspec
from rich.table import Table

from stretto import text
from stretto.cli import options, output
from stretto.cli.launching import launch
from stretto.cli.live import view
from stretto.errors import UsageError
from stretto.strategies import allreduce
from stretto.workloads.result import Result

_NOISE: Final = 0.1
"""Steps that differ by no more than this part contradict nothing."""


class Spread(msgspec.Struct, frozen=True):
    """The median of several runs, and their least and most."""

    median: float
    least: float
    most: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy over all seeds. ``waiting`` is a part of the time from 0 to 1.

    ``sent`` is bytes of an agent in a step; ``ratio`` is what its codec was given to what it made of it, and
    ``codec_seconds`` the CPU time that takes in a step. ``verdict`` says whether that pays here.
    """

    strategy: str
    accuracy: Spread
    seconds: Spread
    samples_per_second: Spread
    sent: Spread
    waiting: Spread
    ratio: float
    codec_seconds: Spread
    verdict: str


@click.command()
@click.argument("workload", default="digits")
@click.option("--strategies", default="allreduce", show_default=True, help="Between commas or semicolons.")
@click.option("--seeds", default=3, show_default=True, help="Runs of each strategy, from --seed on.")
@options.model
@options.agents
@options.link
@options.epochs
@options.seconds
@options.target
@options.batch_size
@options.seed
@options.data
@options.json
def compare(
    workload: str, strategies: str, seeds: int, agents: int, seed: int, json: str | None, **chosen: Any
) -> None:
    """Train WORKLOAD with each strategy in turn: all of them with one seed, then all with the next."""
    output.check_json(json)
    texts = text.split(strategies)
    if not texts or seeds < 1:
        raise UsageError('nothing to compare; give --strategies "allreduce; local_sgd(16)" and --seeds 1 or more')
    jobs = [options.job(workload, agents, strategy=one, seed=seed + i, **chosen) for i in range(seeds) for one in texts]
    console = output.console(json)
    results = []
    for number, job in enumerate(jobs, 1):
        title = f"{number} of {len(jobs)}: {job.strategy}, seed {job.seed}"
        with view(console, title, agents) as seen:
            results.append(launch(job, agents, seen.show, output.printer(console)))
    runs = {job.strategy: [r for r in results if r.strategy == job.strategy] for job in jobs}
    rows = [row(name, mine, runs.get(uncoded(name), ())) for name, mine in runs.items()]
    console.print(table(rows))
    for found in rows:
        if found.verdict:
            console.print(f"{found.strategy}: {found.verdict}", highlight=False)
    output.write_json(json, {"workload": workload, "agents": agents, "rows": rows, "runs": results})


def uncoded(strategy: str) -> str:
    """The same strategy without its codec."""
    written = text.parse(strategy, "strategy")
    return str(allreduce(topology=written.exchange.topology))


def row(strategy: str, results: Sequence[Result], without: Sequence[Result] = ()) -> Row:
    """What one strategy's runs come to, beside those ``without`` its codec, where there are any."""
    ratio = sum(sum(r.dense) for r in results) / max(1, sum(sum(r.coded) for r in results))
    return Row(
        strategy=strategy,
        accuracy=_spread([r.accuracy for r in results]),
        seconds=_spread([r.seconds for r in results]),
        samples_per_second=_spread([r.speed for r in results]),
        sent=_spread(_sent(results)),
        waiting=_spread([statistics.fmean(r.waiting) / r.seconds for r in results]),
        ratio=ratio or 1.0,
        codec_seconds=_spread(_coding(results)),
        verdict=verdict(results, ratio, without) if ratio else "",
    )


def verdict(results: Sequence[Result], ratio: float, without: Sequence[Result] = ()) -> str:
    """Does a codec of this ratio pay, at the rate that the agents found their network to have?

    What would be sent without it, runs ``without`` it tell, and else its ratio. Those runs tell also how long a step
    takes without it; where that clearly says otherwise, both are said.
    """
    cost, rate = statistics.median(_coding(results)), statistics.median(r.rate for r in results)
    sent = statistics.median(_sent(results))
    saved = ((statistics.median(_sent(without)) if without else ratio * sent) - sent) / rate
    saves = f"saves {_short(saved)}" if saved > 0 else "saves nothing"
    costs = f"this codec costs {_short(cost)} a step here and {saves} at {_rate(rate)}"
    pays = saved > cost
    found = "it pays" if pays else "slower than not compressing"
    if not without:
        return f"{costs}: {found}"
    took, before = _step(results), _step(without)
    measured = f"a step took {_short(took)}, and {_short(before)} without"
    if took > (1 + _NOISE) * before if pays else took < (1 - _NOISE) * before:
        return f"{costs}: by that it {'pays' if pays else 'does not pay'}, but it was measured otherwise ({measured})"
    return f"{costs}: {found} ({measured})"


def _sent(results: Sequence[Result]) -> list[float]:
    """Bytes of an agent in a step."""
    return [statistics.fmean(r.sent_training) / r.steps for r in results]


def _coding(results: Sequence[Result]) -> list[float]:
    """CPU seconds of an agent's codec in a step."""
    return [statistics.fmean(r.codec_seconds) / r.steps for r in results]


def _step(results: Sequence[Result]) -> float:
    return statistics.median(r.seconds / r.steps for r in results)


def _short(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms" if seconds < 0.0995 else f"{seconds:.2f} s"


def _rate(rate: float) -> str:
    mbit = 8 * rate / 1e6
    return f"{mbit:,.0f} Mbit/s" if mbit < 1000 else f"{mbit / 1000:,.1f} Gbit/s"


def table(rows: Sequence[Row]) -> Table:
    """Medians; of accuracy and time of several runs also the least and the most, in brackets."""
    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("strategy", overflow="fold", min_width=16)
    for name in (
        "accuracy, %",
        "seconds",
        "samples\na second",
        "kB\na step",
        "ratio",
        "codec, ms\na step",
        "waiting, %",
    ):
        drawn.add_column(name, justify="right")
    for r in rows:
        drawn.add_row(
            r.strategy,
            _spread_text(r.accuracy, 100),
            _spread_text(r.seconds, 1),
            f"{r.samples_per_second.median:,.0f}",
            f"{r.sent.median / 1e3:,.1f}",
            f"{r.ratio:.1f}",
            f"{1e3 * r.codec_seconds.median:.2f}",
            f"{100 * r.waiting.median:.1f}",
        )
    return drawn


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _spread_text(spread: Spread, scale: float) -> str:
    median, least, most = (f"{scale * x:.1f}" for x in (spread.median, spread.least, spread.most))
    return median if spread.least == spread.most else f"{median} ({least} to {most})"
