"""What lies in a tensor: its shape and dtype, the parameters it consists of, and what to draw from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

from stretto.core.seeds import mixed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LayerRole: TypeAlias = Literal["weight", "bias", "norm", "embedding"]


@dataclass(frozen=True, slots=True)
class Named:
    """One parameter in a flat tensor: its name, shape, and what it is in its layer."""

    name: str
    shape: tuple[int, ...]
    role: LayerRole = "weight"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Like:
    """What a codec is given, each time: the shape and dtype of the tensor, and what lies in it.

    Attributes:
        pieces: the parameters that it consists of, in order; without any it is one nameless tensor.
        seed: for what all agents must draw alike.
        own: for what each draws by itself.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Named, ...] = ()
    seed: int = 0
    own: int = 0

    def __post_init__(self) -> None:
        pieces = self.pieces or (Named("", self.shape),)
        if sum(p.numel for p in pieces) != math.prod(self.shape):
            raise ValueError(f"pieces of {[p.numel for p in pieces]} elements do not make a tensor of {self.shape}")
        object.__setattr__(self, "pieces", pieces)

    @classmethod
    def of(cls, x: Tensor, *, seed: int = 0, own: int = 0) -> Like:
        return cls(tuple(x.shape), x.dtype, seed=seed, own=own)

    @cached_property
    def numel(self) -> int:
        return math.prod(self.shape)

    def part(self, start: int, stop: int, number: int) -> Like:
        """Elements ``start`` up to ``stop``, flat, as the ``number``-th part: it draws otherwise than the others."""
        pieces, at = [], 0
        for p in self.pieces:
            first, last = max(start, at), min(stop, at + p.numel)
            if first < last:
                pieces.append(p if last - first == p.numel else replace(p, shape=(last - first,)))
            at += p.numel
        seed, own = mixed(self.seed, number), mixed(self.own, number)
        return Like((stop - start,), self.dtype, tuple(pieces), seed, own)
