"""How an agreed mean lands on the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stretto.core import State
from stretto.text import named


@named("mean", kind="outer")
@dataclass(frozen=True)
class Mean:
    """As it is: the mean replaces what each agent had."""

    kind: ClassVar[str] = "outer"

    def init(self, like: Tensor) -> State:
        return None

    def update(self, mean: Tensor, state: State) -> tuple[Tensor, State]:
        return mean, state
