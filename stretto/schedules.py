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
