"""No compression: the tensor itself travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stretto.core import Payload, State
from stretto.text import named


@named("identity", kind="codec")
@dataclass(frozen=True)
class Identity:
    """Lossless and without a copy: the payload is the tensor."""

    kind: ClassVar[str] = "codec"
    summable: ClassVar[bool] = True

    def init(self, like: Tensor) -> State:
        return None

    def encode(self, x: Tensor, state: State) -> tuple[Payload, State]:
        return (x,), state

    def decode(self, payload: Payload, state: State) -> tuple[Tensor, State]:
        return payload[0], state
