"""What codecs that send some of the elements have in common: they select, and another may write what they selected.

A payload is two things after each other: the values, and *where* they belong (bytes).
:class:`stretto.codecs.chain.Chain` takes the second from a selecting codec, and lets another write the first.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stretto.codecs.base import Base, NonFiniteRule, aligned
from stretto.core import Like, Payload, State
from stretto.errors import DamagedPayload, UsageError


@dataclass(frozen=True, slots=True)
class Selected:
    """``count`` values of a dtype and where they belong, in one vector of bytes; and the codec's new state."""

    raw: Tensor
    dtype: torch.dtype
    count: int
    state: State

    @classmethod
    def of(cls, count: int, dtype: torch.dtype, room: int, state: State) -> Selected:
        """With nothing written yet; ``where`` takes ``room`` bytes."""
        return cls(torch.empty(count * dtype.itemsize + room, dtype=torch.uint8), dtype, count, state)

    @property
    def values(self) -> Tensor:
        return self.raw[: self.count * self.dtype.itemsize].view(self.dtype)

    @property
    def where(self) -> Tensor:
        return self.raw[self.count * self.dtype.itemsize :]


@dataclass(frozen=True, slots=True)
class Split:
    """A payload taken apart: the bytes of the values, how many there are, and where they belong."""

    written: Tensor
    count: int
    where: Tensor


@dataclass(frozen=True)
class Selecting(Base):
    """Some of the elements travel.

    ``nonfinite``: ``"raise"``, or ``"pass"``: then NaN and infinity count as the largest and travel as they are.
    """

    nonfinite: NonFiniteRule = field(default="raise", kw_only=True)

    def __post_init__(self) -> None:
        if self.nonfinite not in ("raise", "pass"):
            raise UsageError(f"nonfinite={self.nonfinite!r} is neither 'raise' nor 'pass'")

    @property
    def certain(self) -> bool:
        """Does the tensor alone decide what is selected?"""
        return False

    @abstractmethod
    def slots(self, like: Like) -> int:
        """The most values that are selected."""

    @abstractmethod
    def room(self, like: Like) -> int:
        """The most bytes that ``where`` takes."""

    @abstractmethod
    def select(self, x: Tensor, like: Like, state: State) -> Selected:
        """
        Raises:
            NonFinite: it holds NaN or infinity, and the codec was not told to let them pass.
        """

    @abstractmethod
    def place(self, values: Tensor, where: Tensor, like: Like, state: State) -> Tensor:
        """A tensor of ``like``'s shape and dtype, with ``values`` where they belong and zeros elsewhere.

        Raises:
            DamagedPayload: ``where`` is nothing that :meth:`select` returns.
        """

    def dtype(self, like: Like) -> torch.dtype:
        """What the values are."""
        return like.dtype

    def size(self, like: Like) -> int:
        return self.room(like) + self.slots(like) * self.dtype(like).itemsize

    def encode(self, x: Tensor, like: Like, state: State) -> tuple[Payload, State]:
        selected = self.select(x, like, state)
        return (selected.raw,), selected.state

    def decode(self, payload: Payload, like: Like, state: State) -> tuple[Tensor, State]:
        values, where = self._read(payload, like)
        return self.place(values, where, like, state), state

    def take(self, y: Tensor, payload: Payload, like: Like, state: State) -> None:
        self.subtract(*self._read(payload, like), y, like, state)

    def subtract(self, values: Tensor, where: Tensor, y: Tensor, like: Like, state: State) -> None:
        """``y`` (flat) loses ``values`` where they belong."""
        y.sub_(self.place(values, where, like, state).view(-1))

    def _read(self, payload: Payload, like: Like) -> tuple[Tensor, Tensor]:
        """The values, and where they belong."""
        split = self.split(payload, like)
        if split.written.numel() != split.count * self.dtype(like).itemsize:
            raise DamagedPayload(f"{self} was given {split.written.numel()} bytes that should be {split.count} values")
        values = aligned(split.written, self.dtype(like))
        if self.nonfinite == "raise" and not finite(values):
            raise DamagedPayload(f"{self} was given NaN or infinity, which it does not send")
        return values, split.where

    def split(self, payload: Payload, like: Like) -> Split:
        """
        Raises:
            DamagedPayload: it is not one uint8 vector, or shorter than what it says of itself.
        """
        raw = one_vector(payload, self)
        return cut_off(raw, self.slots(like), self.room(like), self)


def cut_off(raw: Tensor, count: int, room: int, codec: Any) -> Split:
    """The last ``room`` bytes say where ``count`` values belong."""
    at = raw.numel() - room
    if at < 0:
        raise DamagedPayload(f"{codec} was given {raw.numel()} bytes, of which {room} should say where values belong")
    return Split(raw[:at], count, raw[at:])


def finite(x: Tensor) -> bool:
    """Is all of it? A sum is one quick pass, and never finite when it is not; when it overflows we look closer."""
    parts = x.reshape(-1).split(2**18)
    return all(math.isfinite(part.sum(dtype=torch.float32)) or bool(part.isfinite().all()) for part in parts)


def fraction_of(n: int, fraction: float) -> int:
    """How many that is: rounded up (but for what a float cannot help), and at least one where there is any."""
    return min(n, max(1, math.ceil(round(fraction * n, 6))))


def check_fraction(fraction: float, codec: Any, what: str = "fraction") -> None:
    """
    Raises:
        UsageError: it is none.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"{codec}: {what} must be above 0 and at most 1")


def flattened(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` as a flat contiguous vector, which may be its own memory."""
    return x.detach().reshape(-1).to(dtype).contiguous()


def norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.detach(), dtype=torch.float64))


def one_vector(payload: Payload, codec: Any) -> Tensor:
    """The one uint8 vector that a payload must be, whatever its length.

    Raises:
        DamagedPayload: it is not.
    """
    if len(payload) != 1 or payload[0].dtype != torch.uint8 or payload[0].ndim != 1:
        found = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in payload) or "nothing"
        raise DamagedPayload(f"{codec} was given {found} to decode instead of one vector of bytes")
    return payload[0].contiguous()
