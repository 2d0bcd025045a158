"""How an agreed mean lands on the model: the step that is taken against it, from where all last agreed.

What one of n agents drifted by, landing by itself, is a ``part`` of a round of all: 1/n, where it trained as long as
usual. Each lands as its part of the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

from torch import Tensor

from stretto.core import State
from stretto.errors import UsageError
from stretto.text import named

_ROUNDED: Final = 1e-6
"""More than n times 1/n are off 1, and less than any agent's part."""


@named("mean", kind="outer")
@dataclass(frozen=True)
class Mean:
    """As it is: the step is the mean."""

    kind: ClassVar[str] = "outer"

    def init(self, like: Tensor) -> State:
        return None

    def update(self, mean: Tensor, state: State, part: float = 1.0) -> tuple[Tensor, State]:
        return (mean if part == 1 else mean * part), state


@named("nesterov", kind="outer")
@dataclass(frozen=True)
class Nesterov:
    """``v ← momentum v + mean``, and the step is ``lr (mean + momentum v)``, as ``torch.optim.SGD(nesterov=True)``.

    A part of a round is taken for all of it, but smaller: where drifts come one by one, use :class:`DelayedNesterov`.

    Sutskever et al.: On the importance of initialization and momentum in deep learning, 2013, in PyTorch's form.

    Raises:
        UsageError: ``lr`` or ``momentum`` cannot be.
    """

    lr: float = 0.7
    momentum: float = 0.9
    kind: ClassVar[str] = "outer"

    def __post_init__(self) -> None:
        _rates(self, self.lr, self.momentum)

    def init(self, like: Tensor) -> State:
        return None

    def update(self, mean: Tensor, state: State, part: float = 1.0) -> tuple[Tensor, State]:
        if part != 1:
            mean = mean * part
        if not self.momentum:
            return mean * self.lr, state
        velocity = _velocity(mean, state, self.momentum)
        return (mean + velocity * self.momentum) * self.lr, velocity


@named("delayed_nesterov", kind="outer")
@dataclass(frozen=True)
class DelayedNesterov:
    """Nesterov's for drifts that come one by one: each lands as its part, and the momentum once a round.

    With g the drift and p its part, the step is ``lr p g``. Let s be the sum of ``p g``, and q that of p, since the
    last round was whole. When q comes to 1, ``v ← momentum v + s / q``, and the step is ``lr momentum v`` more. So n
    drifts of 1/n each are one step of :class:`Nesterov` with their mean, and none is accelerated by itself.

    Liu et al.: Asynchronous Local-SGD Training for Language Modeling, 2024 (arXiv 2401.09135), algorithm 3 with c = 0
    and p = 1/N: its buffer of N drifts is a round of all agents, and so follows their number.

    >>> import torch
    >>> outer, state = DelayedNesterov(lr=1.0, momentum=0.5), None
    >>> for drift in (2.0, 4.0, 2.0):
    ...     step, state = outer.update(torch.tensor(drift), state, part=1 / 2)
    ...     print(step.item())
    1.0
    3.5
    1.0

    Raises:
        UsageError: ``lr`` or ``momentum`` cannot be.
    """

    lr: float = 0.7
    momentum: float = 0.9
    kind: ClassVar[str] = "outer"

    def __post_init__(self) -> None:
        _rates(self, self.lr, self.momentum)

    def init(self, like: Tensor) -> State:
        return {"came": 0.0, "sum": None, "velocity": None}

    def update(self, mean: Tensor, state: State, part: float = 1.0) -> tuple[Tensor, State]:
        came, total, velocity = (state or self.init(mean)).values()
        step = mean if part == 1 else mean * part
        came, total = came + part, step.clone() if total is None else total + step
        if came < 1 - _ROUNDED:
            return step * self.lr, {"came": came, "sum": total, "velocity": velocity}
        velocity = _velocity(total / came, velocity, self.momentum)
        return (step + velocity * self.momentum) * self.lr, self.init(mean) | {"velocity": velocity}


def _velocity(mean: Tensor, before: Tensor | None, momentum: float) -> Tensor:
    return mean.clone() if before is None else before * momentum + mean


def _rates(outer: object, lr: float, momentum: float) -> None:
    if not 0 < lr < math.inf:
        raise UsageError(f"{outer}: the outer lr must be above 0; 0.7 is usual with momentum, and 1.0 without")
    if not 0 <= momentum < 1:
        raise UsageError(f"{outer}: the outer momentum must be from 0 to below 1; 0.9 is usual")
