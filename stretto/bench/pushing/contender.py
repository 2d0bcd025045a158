"""What is measured, and what every peer's server does with a push."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor


class Contender(Protocol):
    """An agent's end. Every push of ones moves every value by -1, from 0 on for every new size."""

    def room(self, nbytes: int) -> tuple[Tensor, Tensor]:
        """A gradient of ones, float32, and the tensor in which values will lie."""
        ...

    def call(self, gradient: Tensor, values: Tensor) -> None:
        """Push the one, and pull the other as it is after that."""
        ...

    def close(self) -> None: ...


class Ordinary:
    """Of those who take any memory. What they have is one pair for all of them."""

    def room(self, nbytes: int) -> tuple[Tensor, Tensor]:
        return _pair(nbytes)


@lru_cache(maxsize=1)
def _pair(nbytes: int) -> tuple[Tensor, Tensor]:
    return torch.ones(nbytes // 4), torch.zeros(nbytes // 4)


class Values:
    """What a peer's server holds: values of one size at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._values = torch.empty(0)

    def push(self, gradient: Tensor) -> Tensor:
        """The values with that gradient in them. One push at a time, and read by whoever asked while others go on."""
        with self._lock:
            if self._values.numel() != gradient.numel():
                self._values = torch.zeros_like(gradient)
            return self._values.add_(gradient, alpha=-1.0)


def raw(x: Tensor) -> memoryview:
    """Its bytes, where they lie."""
    return x.numpy().data.cast("B")
