"""When all agree, and on what: on everything, on fragments of it in turn, or only on who trained what."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from stretto.core import Schedule
from stretto.errors import UsageError
from stretto.text import named


@named("every", kind="schedule")
@dataclass(frozen=True)
class Every:
    """After every ``steps``-th step; steps count from 0.

    >>> [step for step in range(6) if Every(3).due(step)]
    [2, 5]
    """

    steps: int = 1
    kind: ClassVar[str] = "schedule"
    fragments: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not _whole(self.steps, 1):
            raise UsageError(f"every({self.steps}): steps must be a whole number from 1 on, like 16")

    def due(self, step: int) -> bool:
        return (step + 1) % self.steps == 0

    def turn(self, step: int) -> int:
        return 0


@named("after", kind="schedule")
@dataclass(frozen=True)
class After:
    """Every step before step ``start``, and from there on every ``steps``-th.

    >>> [step for step in range(9) if After(3, 2).due(step)]
    [0, 1, 2, 4, 6, 8]
    """

    start: int = 0
    steps: int = 1
    kind: ClassVar[str] = "schedule"
    fragments: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not _whole(self.start, 0) or not _whole(self.steps, 1):
            raise UsageError(f"after({self.start}, {self.steps}): start from 0 and steps from 1 on, as after(100, 16)")

    def due(self, step: int) -> bool:
        return step < self.start or (step + 1 - self.start) % self.steps == 0

    def turn(self, step: int) -> int:
        return 0


@named("staggered", kind="schedule")
@dataclass(frozen=True)
class Staggered:
    """Each of ``fragments`` after every ``steps``-th step, one after another, as evenly as that can be.

    >>> schedule = Staggered(6, 3)
    >>> [(step, schedule.turn(step)) for step in range(8) if schedule.due(step)]
    [(1, 0), (3, 1), (5, 2), (7, 0)]
    """

    steps: int = 64
    fragments: int = 4
    kind: ClassVar[str] = "schedule"

    def __post_init__(self) -> None:
        written = f"staggered({self.steps}, {self.fragments})"
        if not _whole(self.steps, 1):
            raise UsageError(f"{written}: every={self.steps} must be a whole number of steps from 1 on, like 64")
        if not _whole(self.fragments, 1) or self.fragments > self.steps:
            raise UsageError(
                f"{written}: fragments={self.fragments} must be a whole number from 1 to {self.steps}, one a step at "
                f"most: use fragments={min(4, self.steps)}"
            )

    def due(self, step: int) -> bool:
        return self._ended(step + 1) > self._ended(step)

    def turn(self, step: int) -> int:
        return (self._ended(step + 1) - 1) % self.fragments

    def _ended(self, steps: int) -> int:
        """How many exchanges have been due after so many steps."""
        cycles, rest = divmod(steps, self.steps)
        return cycles * self.fragments + (self.fragments * (rest + 1) - 1) // self.steps


@named("settled", kind="schedule")
@dataclass(frozen=True)
class Settled:
    """After every ``steps``-th step all agree on who trained which samples, and on nothing else."""

    steps: int = 16
    kind: ClassVar[str] = "schedule"
    fragments: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not _whole(self.steps, 1):
            raise UsageError(f"settled({self.steps}): settle={self.steps} must be a whole number from 1 on, like 16")

    def due(self, step: int) -> bool:
        return (step + 1) % self.steps == 0

    def turn(self, step: int) -> int:
        return 0


def window(schedule: Schedule) -> int:
    """After how many steps it is due for the first time.

    >>> window(Every(3))
    3
    """
    return next(steps for steps in count(1) if schedule.due(steps - 1))


def _whole(number: object, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least
