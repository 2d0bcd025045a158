"""``stretto compare WORKLOAD --strategies "a; b"``: each in turn, over several seeds, in one table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import click
import msgspec
from rich.table import Table

from stretto.cli import options, output
from stretto.cli.launching import launch
from stretto.cli.live import view
from stretto.errors import UsageError
from stretto.workloads.result import Result


class Spread(msgspec.Struct, frozen=True):
    """The median of several runs, and their least and most."""

    median: float
    least: float
    most: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy over all seeds. ``sent`` is bytes an agent, ``waiting`` a part of the time from 0 to 1."""

    strategy: str
    accuracy: Spread
    seconds: Spread
    samples_per_second: Spread
    sent: Spread
    waiting: Spread


@click.command()
@click.argument("workload", default="digits")
@click.option("--strategies", default="allreduce", show_default=True, help="Separated by semicolons.")
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
    texts = [s.strip() for s in strategies.split(";") if s.strip()]
    if not texts or seeds < 1:
        raise UsageError('nothing to compare; give --strategies "allreduce; local_sgd(16)" and --seeds 1 or more')
    jobs = [
        options.job(workload, agents, strategy=text, seed=seed + i, **chosen) for i in range(seeds) for text in texts
    ]
    console = output.console(json)
    results = []
    for number, job in enumerate(jobs, 1):
        title = f"{number} of {len(jobs)}: {job.strategy}, seed {job.seed}"
        with view(console, title, agents) as seen:
            results.append(launch(job, agents, seen.show, output.printer(console)))
    names = list(dict.fromkeys(job.strategy for job in jobs))
    rows = [row(name, [r for r in results if r.strategy == name]) for name in names]
    console.print(table(rows))
    output.write_json(json, {"workload": workload, "agents": agents, "rows": rows, "runs": results})


def row(strategy: str, results: Sequence[Result]) -> Row:
    """What one strategy's runs come to."""
    return Row(
        strategy=strategy,
        accuracy=_spread([r.accuracy for r in results]),
        seconds=_spread([r.seconds for r in results]),
        samples_per_second=_spread([r.speed for r in results]),
        sent=_spread([statistics.fmean(r.bytes_sent) for r in results]),
        waiting=_spread([statistics.fmean(r.waiting) / r.seconds for r in results]),
    )


def table(rows: Sequence[Row]) -> Table:
    """Medians; of accuracy and time also the least and the most, in brackets."""
    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("strategy", overflow="fold")
    for name in ("accuracy, %", "seconds", "samples/s", "MB sent", "waiting, %"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for r in rows:
        drawn.add_row(
            r.strategy,
            _spread_text(r.accuracy, 100),
            _spread_text(r.seconds, 1),
            f"{r.samples_per_second.median:,.0f}",
            f"{r.sent.median / 1e6:,.1f}",
            f"{100 * r.waiting.median:.1f}",
        )
    return drawn


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _spread_text(spread: Spread, scale: float) -> str:
    return f"{scale * spread.median:.1f} ({scale * spread.least:.1f} to {scale * spread.most:.1f})"
