"""How an agreed mean lands on the model: the step that is taken against it, from where all last agreed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stretto.core import State
from stretto.errors import UsageError
from stretto.text import named


@named("mean", kind="outer")
@dataclass(frozen=True)
class Mean:
    """As it is: the step is the mean."""

    kind: ClassVar[str] = "outer"

    def init(self, like: Tensor) -> State:
        return None

    def update(self, mean: Tensor, state: State) -> tuple[Tensor, State]:
        return mean, state


@named("nesterov", kind="outer")
@dataclass(frozen=True)
class Nesterov:
    """``v ← momentum v + mean``, and the step is ``lr (mean + momentum v)``, as ``torch.optim.SGD(nesterov=True)``.

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

    def update(self, mean: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.momentum:
            return mean * self.lr, state
        velocity = _velocity(mean, state, self.momentum)
        return (mean + velocity * self.momentum) * self.lr, velocity


@named("delayed_nesterov", kind="outer")
@dataclass(frozen=True)
class DelayedNesterov:
    """Nesterov's for drifts that come one by one: each lands as its part, the momentum with every ``delay``-th.

    With g the drift, s the sum of the last ``delay`` of them and v the velocity, the step is ``lr g / delay``, and at
    every ``delay``-th ``v ← momentum v + s / delay``, and ``lr momentum v`` besides. So ``delay`` steps together are
    one of :class:`Nesterov` with their mean, and no drift of old weights is accelerated by itself. As many as there are
    agents is usual; 1 is :class:`Nesterov`.

    Liu et al.: Asynchronous Local-SGD Training for Language Modeling, 2024 (arXiv 2401.09135), algorithm 3 with c = 0.

    >>> import torch
    >>> outer, state = DelayedNesterov(lr=1.0, momentum=0.5, delay=2), None
    >>> for drift in (2.0, 4.0, 2.0):
    ...     step, state = outer.update(torch.tensor(drift), state)
    ...     print(step.item())
    1.0
    3.5
    1.0

    Raises:
        UsageError: ``lr``, ``momentum`` or ``delay`` cannot be.
    """

    lr: float = 0.7
    momentum: float = 0.9
    delay: int = 4
    kind: ClassVar[str] = "outer"

    def __post_init__(self) -> None:
        _rates(self, self.lr, self.momentum)
        if not isinstance(self.delay, int) or self.delay < 1:
            raise UsageError(
                f"{self}: delay counts drifts, from 1 on; as many as there are agents, such as 4, is usual"
            )

    def init(self, like: Tensor) -> State:
        return {"count": 0, "sum": None, "velocity": None}

    def update(self, mean: Tensor, state: State) -> tuple[Tensor, State]:
        count, total, velocity = (state or self.init(mean)).values()
        total = mean.clone() if total is None else total + mean
        part = mean / self.delay
        if count + 1 < self.delay:
            return part * self.lr, {"count": count + 1, "sum": total, "velocity": velocity}
        velocity = _velocity(total / self.delay, velocity, self.momentum)
        return (part + velocity * self.momentum) * self.lr, {"count": 0, "sum": None, "velocity": velocity}


def _velocity(mean: Tensor, before: Tensor | None, momentum: float) -> Tensor:
    return mean.clone() if before is None else before * momentum + mean


def _rates(outer: object, lr: float, momentum: float) -> None:
    if not 0 < lr < math.inf:
        raise UsageError(f"{outer}: the outer lr must be above 0; 0.7 is usual with momentum, and 1.0 without")
    if not 0 <= momentum < 1:
        raise UsageError(f"{outer}: the outer momentum must be from 0 to below 1; 0.9 is usual")
