"""What the runs of loose.py come to: a row for every strategy on every network, each beside the reference there.

A curve belongs to a task, a strategy and a seed, and seconds to a network, too: a seed that was trained to its end
without a network need not be trained to its end on a slow one, where its digests are the same. What a step takes there
is then that of a shorter run.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from loose_plan import INFINITE, NETWORKS, REFERENCE, Contender, Network, Plan, Task
from loose_runs import Mark, Run
from msgspec import Struct


class Row(Struct, frozen=True, kw_only=True):
    """Medians over seeds.

    Attributes:
        step: seconds of one.
        merit: of the time of the same steps without a network.
        computing: the share of time in which a trainer does not wait.
        sent: bytes of an agent in a step; ``fewer`` times less than the reference, None where that was not measured.
        apart: from the reference's end: points of accuracy, and % of loss, where a minus is better.
        steps_to: to the reference's end, and ``seconds_to``; None where a seed does not reach it.
        sooner: how many times sooner than the reference that is, if known; ``faster``: the same for all samples.
        part: some runs, of it or of the reference, were shorter: seconds are those of their steps.
        alike: of so many looks how many have the bits that they have without a network.
    """

    task: str
    network: str
    contender: str
    strategy: str
    seeds: int
    step: float
    merit: float | None
    computing: float
    sent: float
    fewer: float | None
    accuracy: float | None
    loss: float | None
    apart_accuracy: float | None
    apart_loss: float | None
    steps_to: float | None
    seconds_to: float | None
    sooner: float | None
    faster: float | None
    part: bool
    alike: tuple[int, int]


class Table:
    """All runs that are compared, by what they are of."""

    def __init__(self, runs: Mapping[Plan, Run]) -> None:
        self._runs = {(p.task, p.network, p.contender, p.seed): run for p, run in runs.items() if run.marks}

    def row(self, task: Task, network: Network, contender: Contender) -> Row | None:
        """None where it was not measured."""
        mine, theirs = (self._of(task, network, name) for name in (contender.name, REFERENCE))
        if not mine:
            return None
        free = self._of(task, INFINITE, contender.name)
        step = statistics.median(map(_step, mine.values()))
        ends = {
            seed: (mark, reference.end)
            for seed, reference in self._ends(task).items()
            if (mark := self._mark(task, contender.name, seed, reference.end.step)) is not None
        }
        arrivals = [self._arrival(task, network, contender.name, seed) for seed in ends]
        arrived = [a for a in arrivals if a]
        whole = len(arrived) == len(ends)
        usual = [self._arrival(task, network, REFERENCE, seed) for seed in ends]
        pairs = [(a, b) for a, b in zip(arrivals, usual, strict=True) if a and b]
        sent = statistics.median(_sent(run) for run in mine.values())
        return Row(
            task=task.name,
            network=network.name,
            contender=contender.name,
            strategy=next(iter(mine.values())).plan.strategy,
            seeds=len(mine),
            step=step,
            merit=step / statistics.median(map(_step, free.values())) if free else None,
            computing=statistics.median(1 - run.end.waiting / run.end.seconds for run in mine.values()),
            sent=sent,
            fewer=statistics.median(map(_sent, theirs.values())) / sent if theirs else None,
            accuracy=_median([mine.accuracy for mine, _ in ends.values()]),
            loss=_median([mine.loss for mine, _ in ends.values()]),
            apart_accuracy=_median([100 * (mine.accuracy - other.accuracy) for mine, other in ends.values()]),
            apart_loss=_median([100 * (mine.loss / other.loss - 1) for mine, other in ends.values()]),
            steps_to=_median([a[0] for a in arrived]) if whole else None,
            seconds_to=_median([a[1] for a in arrived]) if whole else None,
            sooner=_median([b[1] / a[1] for a, b in pairs]) if len(pairs) == len(ends) else None,
            faster=statistics.median(map(_step, theirs.values())) / step if theirs else None,
            part=_part(mine, free) or _part(theirs, self._ends(task)),
            alike=_alike(mine, free),
        )

    def curve(self, task: Task, contender: str, seed: int) -> list[Mark]:
        run = self._runs.get((task.name, INFINITE.name, contender, seed))
        return run.marks if run else []

    def _mark(self, task: Task, contender: str, seed: int, step: int) -> Mark | None:
        """What all would have if training ended there: the mean of their weights. It is the same on every network."""
        runs = (self._of(task, network, contender).get(seed) for network in NETWORKS)
        return next((m for run in runs if run is not None for m in run.marks if m.step == step), None)

    def seconds(self, task: Task, network: Network, contender: str, seed: int, step: float) -> float | None:
        """Until that step there: by this seed's run as far as it goes, and else by what steps take there."""
        runs = self._of(task, network, contender)
        if not runs:
            return None
        if seed in runs and runs[seed].end.step >= step:
            return _between([(m.step, m.seconds) for m in runs[seed].marks if not m.end], step)
        return step * statistics.median(map(_step, runs.values()))

    def _of(self, task: Task, network: Network, contender: str) -> dict[int, Run]:
        wanted = (task.name, network.name, contender)
        return {key[3]: run for key, run in sorted(self._runs.items()) if key[:3] == wanted}

    def _ends(self, task: Task) -> dict[int, Run]:
        return self._of(task, INFINITE, REFERENCE)

    def _arrival(self, task: Task, network: Network, contender: str, seed: int) -> tuple[float, float] | None:
        """The step and the second at which the reference's end is reached."""
        end = self._ends(task)[seed].end
        step = reached(task, self.curve(task, contender, seed), end)
        seconds = None if step is None else self.seconds(task, network, contender, seed, step)
        return None if step is None or seconds is None else (step, seconds)


def reached(task: Task, curve: Sequence[Mark], end: Mark) -> float | None:
    """The first step at which a curve is as good as ``end``, on straight lines between marks; None: it never is."""
    ahead = [(m.step, m.accuracy - end.accuracy if task.goal == "accuracy" else end.loss - m.loss) for m in curve]
    if ahead and ahead[0][1] >= 0:
        return ahead[0][0]
    for (step, before), (later, after) in pairwise(ahead):
        if before < 0 <= after:
            return step + (later - step) * -before / (after - before)
    return None


def _between(points: Sequence[tuple[int, float]], step: float) -> float:
    """On straight lines from 0, 0."""
    for (a, x), (b, y) in pairwise([(0, 0.0), *points]):
        if a <= step <= b:
            return x + (y - x) * (step - a) / (b - a)
    return points[-1][1]


def _step(run: Run) -> float:
    return run.end.seconds / run.end.step


def _sent(run: Run) -> float:
    return run.end.sent / run.end.step


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _part(mine: Mapping[int, Run], free: Mapping[int, Run]) -> bool:
    return any(mine[s].end.step < free[s].end.step for s in mine if s in free)


def _alike(mine: Mapping[int, Run], free: Mapping[int, Run]) -> tuple[int, int]:
    known = {(seed, m.step, m.end): m.digest for seed, run in free.items() for m in run.marks}
    both = [(known[at], m.digest) for s, r in mine.items() for m in r.marks if (at := (s, m.step, m.end)) in known]
    return sum(a == b for a, b in both), len(both)
