"""No compression: the tensor itself travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stretto.codecs.base import Base
from stretto.core import Like, Payload, State
from stretto.errors import DamagedPayload
from stretto.text import named


@named("identity", kind="codec")
@dataclass(frozen=True)
class Identity(Base):
    """Lossless and without a copy: the payload is the tensor."""

    when: ClassVar[str] = "the network is quick, or every bit counts"

    @property
    def summable(self) -> bool:
        return True

    @property
    def unbiased(self) -> bool:
        return True

    def encode(self, x: Tensor, like: Like, state: State) -> tuple[Payload, State]:
        return (x,), state

    def decode(self, payload: Payload, like: Like, state: State) -> tuple[Tensor, State]:
        if len(payload) != 1 or payload[0].dtype != like.dtype or payload[0].numel() != like.numel:
            raise DamagedPayload(f"identity was given {len(payload)} tensors that are not the {like.shape} it awaits")
        return payload[0].view(like.shape), state

    def size(self, like: Like) -> int:
        return like.numel * like.dtype.itemsize

    def bound(self, x: Tensor) -> float:
        return 0.0
