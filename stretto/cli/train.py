"""``stretto train WORKLOAD``: several agents on this machine, one result."""

from __future__ import annotations

import statistics
from typing import Any

import click
from rich.console import Console

from stretto.cli import options, output
from stretto.cli.launching import launch
from stretto.cli.live import view
from stretto.errors import StrettoError
from stretto.launch.supervise import USUAL, Care
from stretto.workloads.result import Job, Result


@click.command()
@click.argument("workload", default="digits")
@options.model
@options.agents
@options.servers
@click.option("--strategy", default="allreduce", show_default=True, help="How the agents synchronise.")
@options.link
@options.epochs
@options.seconds
@options.target
@options.batch_size
@options.seed
@options.data
@options.care
@options.json
def train(
    workload: str,
    agents: int,
    servers: int,
    json: str | None,
    restarts: int | None,
    min_agents: int | None,
    checkpoint: str | None,
    checkpoint_every: float | None,
    **chosen: Any,
) -> None:
    """Train WORKLOAD (digits, fashion-mnist, mnist, shakespeare or recommender) with several agents on this machine.

    Without --epochs, --seconds or --target it trains the workload's usual epochs; with several, the first to be
    reached ends it.
    """
    output.check_json(json)
    job = options.job(workload, agents, **chosen)
    options.check_servers(servers, job.link)
    care = options.careful(
        agents,
        restarts=restarts,
        min_agents=min_agents,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
    )
    result = watch(output.console(json), job, agents, care, servers)
    output.write_json(json, result)
    if result.reached is False:
        raise StrettoError(
            f"accuracy {result.accuracy:.3f} after {result.seconds:.1f} s; --target {job.target:g} was not reached; "
            "give it more --epochs or --seconds, or another --model"
        )


def watch(console: Console, job: Job, agents: int, care: Care = USUAL, servers: int = 0) -> Result:
    """Train while the console shows it, then sum it up."""
    who = f"{agents} agents" + (f", {servers} server{'s' * (servers > 1)}" if servers else "")
    title = f"{job.workload}, {job.model}: {who}, {job.strategy}, link {job.link}"
    with view(console, title, agents) as seen:
        result = launch(job, agents, seen.show, output.printer(console), care, servers=servers)
    summarise(console, result)
    return result


def summarise(console: Console, result: Result) -> None:
    """The result in a few lines."""
    equal = len(set(result.digests)) == 1
    console.print()
    console.print(f"accuracy {output.percent(result.accuracy)}, {_missed(result)} on the test data")
    console.print(
        f"{result.steps:,} steps, {result.samples:,} samples in {result.seconds:.1f} s ({result.speed:,.0f} a second); "
        f"waiting {output.percent(statistics.fmean(result.waiting) / result.seconds)} of it"
    )
    wire = statistics.fmean(result.wire_sent)
    counted = f"({output.megabytes(wire)} by the system's own counters)" if wire else "(none of it over a network)"
    console.print(f"an agent sent {output.megabytes(statistics.fmean(result.bytes_sent))} {counted}")
    if sum(result.staleness.values()):
        pushes, late = sum(result.staleness.values()), sum(tau * n for tau, n in result.staleness.items())
        console.print(
            f"staleness {late / pushes:.1f} pushes in the mean, {max(result.staleness)} at most, of {pushes:,}"
        )
    held = f"digests of {len(result.digests)} agents equal: {result.digests[0]}"
    console.print(f"{result.proof}; {held if equal else 'the weights differ: ' + ', '.join(result.digests)}")


def _missed(result: Result) -> str:
    if result.rmse is None:
        return f"loss {result.loss:.3f}"
    if result.floor is None or result.ratio is None:
        return f"RMSE {result.rmse:.4f}"
    return f"RMSE {result.rmse:.4f}, {result.ratio:.4f} times the planted floor of {result.floor:.4f},"
