"""How what all agreed on lands on an agent's own weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stretto.errors import UsageError
from stretto.text import named


@named("replace", kind="landing")
@dataclass(frozen=True)
class Replace:
    """It takes their place. With ``behind`` 1 or more what agents trained meanwhile is lost.

    Args:
        behind: steps that agents train on while the exchange is under way.
    """

    behind: int = 0
    kind: ClassVar[str] = "landing"

    def __post_init__(self) -> None:
        _steps(self, self.behind)

    def land(self, own: Tensor, left: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return after


@named("carry", kind="landing")
@dataclass(frozen=True)
class Carry:
    """It takes the place of what was sent; what agents trained meanwhile is carried over, and sent the next time."""

    behind: int = 0
    kind: ClassVar[str] = "landing"

    def __post_init__(self) -> None:
        _steps(self, self.behind)

    def land(self, own: Tensor, left: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return own + (after - left) if self.behind else after


@named("mix", kind="landing")
@dataclass(frozen=True)
class Mix:
    """``own`` of an agent's weights, and the rest of what all agreed on.

    Douillard et al.: Streaming DiLoCo with overlapping communication, 2025 (arXiv 2501.18512), section 2.3.
    """

    own: float = 0.5
    behind: int = 0
    kind: ClassVar[str] = "landing"

    def __post_init__(self) -> None:
        _steps(self, self.behind)
        if not 0 <= self.own < 1:
            raise UsageError(f"{self}: own must be from 0 to below 1; 0.5 is usual")

    def land(self, own: Tensor, left: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return after.lerp(own, self.own)


@named("pull", kind="landing")
@dataclass(frozen=True)
class Pull:
    """An agent's weights are drawn by ``strength`` towards what all had agreed on: an elastic, not a leap.

    Zhang, Choromanska, LeCun: Deep learning with Elastic Averaging SGD, NeurIPS 2015 (arXiv 1412.6651), equation 5.
    """

    strength: float = 0.1
    behind: int = 0
    kind: ClassVar[str] = "landing"

    def __post_init__(self) -> None:
        _steps(self, self.behind)
        if not 0 < self.strength <= 1:
            raise UsageError(f"{self}: strength must be above 0 and at most 1; 0.1 is usual")

    def land(self, own: Tensor, left: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return own.lerp(before, self.strength)


@named("restart", kind="landing")
@dataclass(frozen=True)
class Restart:
    """It lands when the next exchange begins: till then an agent goes on from where all last agreed.

    Args:
        behind: steps between two exchanges.
        guess: how much of its own part of the step under way an agent takes at once, until the mean is there: 0, or 1
            for all that it adds to the mean (one n-th of n agents).

    Kale, Douillard, Donchev: Eager updates for overlapped communication and computation in DiLoCo, 2025 (arXiv
    2502.12996), section 3.
    """

    behind: int = 0
    guess: float = 1.0
    kind: ClassVar[str] = "landing"

    def __post_init__(self) -> None:
        _steps(self, self.behind)
        if not 0 <= self.guess <= 1:
            raise UsageError(f"{self}: guess must be from 0 to 1; 1 takes all of one's own part")

    def land(self, own: Tensor, left: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return after


def _steps(landing: object, behind: int) -> None:
    if not isinstance(behind, int) or behind < 0:
        raise UsageError(f"{landing}: behind counts steps, from 0 on")
