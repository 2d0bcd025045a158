"""How an agreed mean lands on the model: the step that is taken against it, from where all last agreed."""

from __future__ import annotations

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
    """

    lr: float = 0.7
    momentum: float = 0.9
    kind: ClassVar[str] = "outer"

    def __post_init__(self) -> None:
        if not self.lr > 0 or not 0 <= self.momentum < 1:
            raise UsageError(f"{self}: lr must be above 0 and momentum from 0 to below 1; 0.7 and 0.9 are usual")

    def init(self, like: Tensor) -> State:
        return None

    def update(self, mean: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.momentum:
            return mean * self.lr, state
        velocity = mean.clone() if state is None else state * self.momentum + mean
        return (mean + velocity * self.momentum) * self.lr, velocity
