"""Options that several commands share, and what they mean: a training job that was checked before anything starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from stretto import text, workloads
from stretto.errors import UnknownName, UsageError
from stretto.launch.join import LINKS
from stretto.workloads.result import Job

agents = click.option("--agents", "-n", default=4, show_default=True, help="How many agents (processes) to start.")
link = click.option("--link", default="auto", show_default=True, help=f"The transport: {', '.join(LINKS)}.")
seed = click.option("--seed", default=0, show_default=True, help="Of the weights, the order of samples and the codecs.")
json = click.option("--json", metavar="PATH", help="Write the result here as one JSON object; - is standard output.")
model = click.option(
    "--model", default="cnn", show_default=True, help="mlp, cnn, lstm; mlp-10m where images are large."
)
batch_size = click.option("--batch-size", type=int, help="Samples of one agent in a step. [default: 128 / agents]")
epochs = click.option("--epochs", type=int, help="Stop after this many epochs. [default: the workload's]")
seconds = click.option("--seconds", type=float, help="Stop after this time of training.")
target = click.option("--target", type=float, help="Stop at this accuracy on the test data, from 0 to 1.")
data = click.option(
    "--data", metavar="DIR", envvar="STRETTO_DATA", show_envvar=True, help="The data's folder; else they are fetched."
)


def check_agents(count: int) -> None:
    if count < 1:
        raise UsageError(f"{count} agents cannot train; give --agents 1 or more")


def check_link(name: str) -> None:
    if name not in LINKS:
        raise UnknownName("link", name, LINKS)


def strategy_text(strategy: str) -> str:
    """The canonical text of a strategy; raises what :func:`stretto.text.parse` does."""
    import stretto.strategies  # noqa: F401, PLC0415  registers their names

    return str(text.parse(strategy, "strategy"))


def job(
    workload: str,
    agents: int,
    *,
    strategy: str,
    model: str,
    link: str,
    batch_size: int | None,
    data: str | None,
    **limits: Any,
) -> Job:
    """The job that the options describe, with its data found. ``folder`` is filled in at the start.

    Raises:
        UsageError: an option that cannot be, or more agents than samples.
        DataError: the data are not there, or damaged.
    """
    known = workloads.get(workload)
    check_agents(agents)
    check_link(link)
    _check_limits(**limits)
    known.model(model)
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: an agent trains at least one sample a step")
    if agents > known.samples:
        raise UsageError(f"more agents than samples: {agents} agents, {known.samples} samples of {workload}")
    found = known.find(Path(data) if data else None)
    return Job(
        workload=workload,
        model=model,
        strategy=strategy_text(strategy),
        link=link,
        batch_size=batch_size or known.batch_of(agents),
        data=str(found) if found else None,
        folder="",
        threads=max(1, len(os.sched_getaffinity(0)) // agents),
        **limits,
    )


def _check_limits(*, seed: int, epochs: int | None, seconds: float | None, target: float | None) -> None:
    if not -(2**63) <= seed < 2**63:
        raise UsageError(f"--seed {seed} does not fit 64 bits")
    if epochs is not None and epochs < 1:
        raise UsageError(f"--epochs {epochs}: give at least 1")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds {seconds:g}: give more than 0")
    if target is not None and not 0 < target <= 1:
        raise UsageError(f"--target {target:g}: accuracy is from 0 to 1, for example 0.95")
