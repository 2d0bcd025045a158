"""Times and ratios: contenders take turns, every turn begins at a barrier, a ratio compares turns of the same round.

A turn lasts from the moment the last agent begins until the last one ends, on the machine's one monotonic clock, so
that the barrier itself, and who happens to leave it first, count for nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import msgspec
import numpy as np


class Spread(msgspec.Struct, frozen=True):
    """The median of ``count`` values, and their quartiles."""

    median: float
    low: float
    high: float
    count: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One contender on one case. ``ratios`` is its time over another's, by name; ``goals`` the most that may be.

    ``most``: the milliseconds to stay below, where that is a goal too.
    """

    agents: int
    case: str
    contender: str
    ms: Spread
    ratios: dict[str, Spread] = {}
    goals: dict[str, float] = {}
    most: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the medians meet every goal whose opponent was there; None without one."""
        known = [self.ratios[name].median <= most for name, most in self.goals.items() if name in self.ratios]
        known += [] if self.most is None else [self.ms.median < self.most]
        return all(known) if known else None


class Gathering(Protocol):
    """What taking turns needs of the processes."""

    def barrier(self) -> None: ...
    def gather(self, values: Sequence[float]) -> list[list[float]]: ...


def spread(values: Sequence[float], scale: float = 1.0) -> Spread:
    """Median and quartiles of ``values``, times ``scale``.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    Spread(median=3.0, low=2.0, high=4.0, count=5)
    """
    low, median, high = (float(q) * scale for q in np.percentile(values, (25, 50, 75)))
    return Spread(median, low, high, len(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Of times measured in the same rounds: what disturbed both cancels."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def take_turns(
    team: Gathering,
    contenders: Mapping[str, Callable[[], None]],
    rounds: int,
    before: Callable[[str], None] = lambda name: None,
    after: Callable[[str], None] = lambda name: None,
    warm_up: int = 2,
) -> dict[str, list[float]]:
    """Seconds of every contender in every round, the same on all agents.

    Each round begins with another contender (A B C, B C A, ...), so that none is always the first. ``before`` and
    ``after`` are outside the clock. The first ``warm_up`` rounds are not counted.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            before(name)
            team.barrier()
            begin = time.perf_counter()
            contenders[name]()
            end = time.perf_counter()
            everyone = team.gather((begin, end))
            after(name)
            if number >= warm_up:
                seconds[name].append(max(e for _, e in everyone) - max(b for b, _ in everyone))
    return seconds


def rows(
    agents: int,
    case: str,
    seconds: Mapping[str, Sequence[float]],
    against: Sequence[str],
    goals: Mapping[str, Mapping[str, float]],
    parts: int = 1,
    most: Mapping[str, float] = MappingProxyType({}),
) -> list[Row]:
    """One row a contender; a turn was ``parts`` equal pieces of work. ``goals`` and ``most``: by contender."""
    return [
        Row(
            agents=agents,
            case=case,
            contender=name,
            ms=spread(times, 1e3 / parts),
            ratios={other: ratio(times, seconds[other]) for other in against if other in seconds and other != name},
            goals=dict(goals.get(name, {})),
            most=most.get(name),
        )
        for name, times in seconds.items()
    ]
