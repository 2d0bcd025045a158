"""Stragglers: four agents, one of them with a quarter of a core; what they train together, and what each would alone.

An agent's *own speed* is what it trains while all four train, confined alike and exchanging nothing: the cores are as
busy, and nobody waits. A strategy's rate is all samples over the time from the last agent's beginning to the last one's
end. How good the model was when, is looked at afterwards: the first agent keeps copies of its weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median_high
from typing import Any, Final

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from stretto import workloads
from stretto.bench import confine
from stretto.bench import team as teams
from stretto.bench.measure import spread
from stretto.bench.report import NOT_MEASURED, Section, number, spread_text
from stretto.bench.team import Team
from stretto.workloads import Split, Workload
from stretto.workloads.train import judged

AGENTS: Final = 4
SLOW: Final = AGENTS - 1
SHARE: Final = 0.25
"""Of a core, for the slow agent and its courier."""
OWN: Final = "no exchange"
ROUNDS: Final = 3
LOOK: Final = 0.1
"""Seconds between two copies of the weights."""
GOAL: Final = 0.9
"""Of the sum of own speeds."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained: ``target`` is the accuracy to be reached, ``seconds`` how long own speeds are measured."""

    workload: str
    batch_size: int
    epochs: int
    target: float
    seconds: float

    def find(self, data: Path) -> Path | None:
        """Where its data are.

        Raises:
            DataError: they are not there, or damaged.
        """
        return workloads.get(self.workload).find(data)


SMALL: Final = Task("digits", batch_size=64, epochs=60, target=0.95, seconds=3.0)
LARGE: Final = Task("fashion-mnist", batch_size=64, epochs=1, target=0.80, seconds=10.0)
"""Where its data are."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A strategy. (With ``ssp`` who is slow takes smaller batches by itself.)"""

    strategy: str
    goal: bool = False

    def __str__(self) -> str:
        return f"`{self.strategy}`"


CONTENDERS: Final = (
    Contender("bsp()"),
    Contender("ssp(4)", goal=True),
    Contender("asp()", goal=True),
)


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """One run: samples a second of all, their part of the sum of own speeds, seconds to the target (None: never)."""

    rate: float
    share: float
    to_target: float | None
    accuracy: float


def run(command: str, say: Callable[[str], None], data: Path | None = None, rounds: int | None = None) -> Section:
    """Measure; ``data`` holds those of the large task.

    Raises:
        UsageError: nobody can be confined here.
    """
    task = SMALL if data is None else LARGE
    own: list[list[float]] = []
    found: dict[str, list[Trained]] = {str(c): [] for c in CONTENDERS}
    for turn in range(rounds or ROUNDS):
        own.append(_own_speeds(task, data))
        say("own speeds: " + ", ".join(f"{x:,.0f}" for x in own[-1]) + " samples a second")
        first = turn % len(CONTENDERS)
        for c in CONTENDERS[first:] + CONTENDERS[:first]:
            trained = _train(task, data, c, own[-1])
            found[str(c)].append(trained)
            say(f"{c}: {trained.rate:,.0f} samples a second, {trained.share:.2f} of the sum of own speeds")
    return _section(command, task, own, found)


def _own_speeds(task: Task, data: Path | None) -> list[float]:
    with confine.confined(SHARE) as group:
        ask = {"task": task, "data": str(data) if data else None, "group": str(group)}
        (found,) = teams.run(AGENTS, alone, _plain(ask))
    return [float(x) for x in found]


def _train(task: Task, data: Path | None, contender: Contender, own: Sequence[float]) -> Trained:
    with confine.confined(SHARE) as group:
        ask = {"task": task, "data": str(data) if data else None, "group": str(group)}
        (found,) = teams.run(AGENTS, together, _plain(ask | {"strategy": contender.strategy}), epochs=("agents",))
    rate = found["samples"] / found["seconds"]
    return Trained(rate=rate, share=rate / sum(own), to_target=found["to_target"], accuracy=found["accuracy"])


def alone(team: Team, ask: dict[str, Any]) -> None:
    """What each process does while own speeds are measured."""
    task, workload, split = _prepared(team, ask)
    model = workload.model(workload.usual)
    optimizer = workload.optimizer(model)
    dealt = cycle(zip(*(x.split(task.batch_size) for x in split), strict=True))
    _steps(workload, model, optimizer, dealt, time.monotonic() + task.seconds / 4)  # until all caches are warm
    team.barrier()
    begin = time.monotonic()
    trained = _steps(workload, model, optimizer, dealt, begin + task.seconds)
    speed = trained / (time.monotonic() - begin)
    _steps(workload, model, optimizer, dealt, time.monotonic() + task.seconds / 4)  # until all others have measured
    team.tell([x for (x,) in team.gather((speed,))])


def _steps(
    workload: Workload, model: nn.Module, optimizer: torch.optim.Optimizer, dealt: Iterator[Any], until: float
) -> int:
    """Samples trained until then."""
    trained = 0
    while time.monotonic() < until:
        x, y = next(dealt)
        workload.loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        trained += len(y)
    return trained


def together(team: Team, ask: dict[str, Any]) -> None:
    """What each agent does: a user's loop, and looks at the weights."""
    task, workload, split = _prepared(team, ask)
    agent = team.agent("agents", "tcp")
    torch.manual_seed(0)
    model = workload.model(workload.usual)
    model, optimizer = agent.prepare(model, workload.optimizer(model), strategy=ask["strategy"])
    agent.mean(0.0)  # everybody is here
    trained, looks, begin = 0, list[tuple[float, Tensor]](), time.monotonic()
    for x, y in agent.shard(split, task.batch_size, epochs=task.epochs):
        workload.loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        trained += len(y)
        now = time.monotonic() - begin
        if team.rank == 0 and now >= LOOK * len(looks):
            looks.append((now, parameters_to_vector(model.parameters()).detach().clone()))
    end = time.monotonic()
    agent.synchronise()
    times = team.gather((begin, end, float(trained)))
    begins, ends, samples = (list(column) for column in zip(*times, strict=True))
    looks.append((end - begin, parameters_to_vector(model.parameters()).detach().clone()))
    if team.rank == 0:
        scores = _tested(workload, _data(ask), model, looks)
        reached = next((at for at, accuracy in scores if accuracy >= task.target), None)
        team.tell(
            {
                "seconds": max(ends) - max(begins),
                "samples": sum(samples),
                "to_target": reached,
                "accuracy": scores[-1][1],
            }
        )
    agent.leave()


def _tested(
    workload: Workload, data: Path | None, model: nn.Module, looks: Sequence[tuple[float, Tensor]]
) -> list[tuple[float, float]]:
    test = workload.load(data).test
    scores = []
    for at, weights in looks:
        vector_to_parameters(weights, model.parameters())
        right, _, count = judged(workload, model, *test)
        scores.append((at, right / count))
    return scores


def _prepared(team: Team, ask: dict[str, Any]) -> tuple[Task, Workload, Split]:
    task = Task(**ask["task"])
    workload = workloads.get(task.workload)
    split = workload.load(_data(ask)).train
    if team.rank == SLOW:
        confine.enter(Path(ask["group"]))
    team.barrier()
    return task, workload, split


def _data(ask: Mapping[str, Any]) -> Path | None:
    return Path(ask["data"]) if ask["data"] else None


def _plain(ask: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(ask)
    return plain


def _section(
    command: str, task: Task, own: Sequence[Sequence[float]], found: Mapping[str, Sequence[Trained]]
) -> Section:
    speeds = [spread([one[rank] for one in own]) for rank in range(AGENTS)]
    total = spread([sum(one) for one in own])
    rows: list[tuple[str, ...]] = [(OWN, spread_text(total), "1", "", "", "", "")]
    rows += [cells(str(c), c.goal, found[str(c)]) for c in CONTENDERS]
    about = (
        f"{AGENTS} agents, {task.workload}, the usual model and optimizer, batches of {task.batch_size}; the last "
        f"agent and its courier have {SHARE:g} of a core. Own speeds, samples a second: "
        f"{', '.join(number(s.median) for s in speeds)}. All of them, their couriers and the server share the "
        "machine's cores, so what exchanging costs is lost to training. To the target: seconds until the first agent's "
        f"weights get {100 * task.target:g} % of the test data right."
    )
    headers = (
        "who",
        "samples/s (quartiles)",
        "of own speeds",
        "to target, s",
        "accuracy at the end",
        "goal",
        "reached",
    )
    return Section(
        title="Stragglers",
        command=command,
        about=about,
        headers=headers,
        cells=tuple(rows),
        data={"task": task, "own": own, "found": found},
    )


def cells(name: str, goal: bool, runs: Sequence[Trained]) -> tuple[str, ...]:
    share = spread([run.share for run in runs])
    judged_ = (f"at least {GOAL:g}", "yes" if share.median >= GOAL else "no") if goal else ("", "")
    return (
        name,
        spread_text(spread([run.rate for run in runs])),
        spread_text(share),
        to_target([run.to_target for run in runs]),
        f"{100 * spread([run.accuracy for run in runs]).median:.1f} %",
        *judged_,
    )


def to_target(seconds: Sequence[float | None]) -> str:
    """The median, where most of them got there."""
    median = median_high(float("inf") if s is None else s for s in seconds)
    return NOT_MEASURED if median == float("inf") else number(median)
