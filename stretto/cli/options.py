"""Options that several commands share, and what they mean: a training job that was checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from stretto import text
from stretto.errors import UnknownName, UsageError
from stretto.launch.environment import LINKS
from stretto.launch.supervise import Care

if TYPE_CHECKING:
    from stretto.workloads import Workload
    from stretto.workloads.result import Job

agents = click.option("--agents", "-n", default=4, show_default=True, help="How many agents (processes) to start.")
servers = click.option(
    "--servers", default=0, show_default=True, help="Processes beside the agents that hold the parameters for them."
)
link = click.option("--link", default="auto", show_default=True, help=f"The transport: {', '.join(LINKS)}.")
seed = click.option("--seed", default=0, show_default=True, help="Of the weights and the order of samples.")
json = click.option("--json", metavar="PATH", help="Write the result here as one JSON object; - is standard output.")
model = click.option(
    "--model",
    help="mlp, cnn, lstm; mlp-10m where images are large; gpt for text; factors for ratings [default: cnn, or its own]",
)
batch_size = click.option(
    "--batch-size", type=int, help="Samples of one agent in a step. [default: the workload's / agents]"
)
epochs = click.option("--epochs", type=int, help="Stop after this many epochs. [default: the workload's]")
seconds = click.option("--seconds", type=float, help="Stop after this time of training.")
target = click.option("--target", type=float, help="Stop at this accuracy on the test data, from 0 to 1.")
data = click.option(
    "--data",
    metavar="DIR",
    envvar="STRETTO_DATA",
    show_envvar=True,
    help="The data's folder; else they are fetched, or made.",
)

_CARE = (
    click.option("--restarts", type=int, help="How often a killed agent is started again. [default: always]"),
    click.option("--min-agents", type=int, help="So many may go on without a majority. [default: wait for one]"),
    click.option("--checkpoint", metavar="PLACE", help="Where to save the run, and from where to go on."),
    click.option("--checkpoint-every", type=float, metavar="SECONDS", help="How often to save it."),
)


def care(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what to do when agents die; see :func:`careful`."""
    for option in reversed(_CARE):
        command = option(command)
    return command


def careful(
    agents: int,
    *,
    restarts: int | None,
    min_agents: int | None,
    checkpoint: str | None,
    checkpoint_every: float | None,
) -> Care:
    """What the options of :func:`care` mean for so many agents.

    Raises:
        UsageError: one of them cannot be.
    """
    if restarts is not None and restarts < 0:
        raise UsageError(f"--restarts {restarts}: give 0 or more")
    if min_agents is not None and not 1 <= min_agents <= agents:
        raise UsageError(f"--min-agents {min_agents} of {agents} agents: give 1 to {agents}")
    if checkpoint_every is not None and not 0 < checkpoint_every < float("inf"):
        raise UsageError(f"--checkpoint-every {checkpoint_every:g}: give more than 0 seconds")
    if checkpoint_every is not None and checkpoint is None:
        raise UsageError("--checkpoint-every says how often to save; give --checkpoint PLACE too, to say where")
    return Care(restarts=restarts, min_agents=min_agents, checkpoint=checkpoint, checkpoint_every=checkpoint_every)


def check_agents(count: int) -> None:
    if count < 1:
        raise UsageError(f"{count} agents cannot train; give --agents 1 or more")


def check_servers(count: int, link: str) -> None:
    if count < 0:
        raise UsageError(f"there cannot be {count} servers; give --servers 0 or more")
    if count and link == "c10d":
        raise UsageError(f"link c10d has no place for {count} servers; use --link tcp, or leave --servers out")


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
    model: str | None,
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
    from stretto import workloads  # noqa: PLC0415  with torch, which `stretto run` does without
    from stretto.workloads.result import Job  # noqa: PLC0415

    known = workloads.get(workload)
    check_agents(agents)
    check_link(link)
    _check_limits(**limits)
    model = model or known.usual
    known.model(model)
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: an agent trains at least one sample a step")
    if agents > known.samples:
        raise UsageError(f"more agents than samples: {agents} agents, {known.samples} samples of {workload}")
    found = known.find(_directory(known, data))
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


def _directory(known: Workload, data: str | None) -> Path | None:
    """Where to look. $STRETTO_DATA, which is of all workloads, need not hold what can be made."""
    context = click.get_current_context(silent=True)
    aside = context is not None and context.get_parameter_source("data") is ParameterSource.ENVIRONMENT
    if data is None or (known.made and aside and not Path(data, known.name).exists()):
        return None
    return Path(data)


def _check_limits(*, seed: int, epochs: int | None, seconds: float | None, target: float | None) -> None:
    if not -(2**63) <= seed < 2**63:
        raise UsageError(f"--seed {seed} does not fit 64 bits")
    if epochs is not None and epochs < 1:
        raise UsageError(f"--epochs {epochs}: give at least 1")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds {seconds:g}: give more than 0")
    if target is not None and not 0 < target <= 1:
        raise UsageError(f"--target {target:g}: accuracy is from 0 to 1, for example 0.95")
