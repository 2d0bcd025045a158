"""When an exchange is due."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise UsageError(f"every({self.steps}): steps must be a whole number from 1 on")

    def due(self, step: int) -> bool:
        return (step + 1) % self.steps == 0


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

    def __post_init__(self) -> None:
        if not isinstance(self.start, int) or self.start < 0 or not isinstance(self.steps, int) or self.steps < 1:
            raise UsageError(f"after({self.start}, {self.steps}): give whole numbers, start from 0 and steps from 1 on")

    def due(self, step: int) -> bool:
        return step < self.start or (step + 1 - self.start) % self.steps == 0


@named("never", kind="schedule")
@dataclass(frozen=True)
class Never:
    """Only when somebody comes, asks, or the run ends."""

    kind: ClassVar[str] = "schedule"

    def due(self, step: int) -> bool:
        return False
