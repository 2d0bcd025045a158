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

from stretto.codecs.base import Base, NonFiniteRule, aligned, not_finite
from stretto.codecs.places import Places, nbytes, read
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
        """``y`` (flat, of ``like``'s dtype) loses what ``payload`` holds of it."""
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


@dataclass(frozen=True)
class Scattered(Selecting):
    """Values of the tensor itself, and where they stand."""

    @property
    def certain(self) -> bool:
        return True

    @abstractmethod
    def find(self, flat: Tensor, like: Like, state: State) -> tuple[Places, State]:
        """Where in ``flat`` what is to be sent stands. What is not finite is there."""

    def room(self, like: Like) -> int:
        return nbytes(like.numel, self.slots(like))

    def written(self, places: Places, like: Like) -> int:
        """How many values are written: what is not a place is zero."""
        return self.slots(like)

    def select(self, x: Tensor, like: Like, state: State) -> Selected:
        flat = flattened(x, like.dtype)
        places, state = self.find(flat, like, state)
        k = self.written(places, like)
        selected = Selected.of(k, like.dtype, nbytes(like.numel, k), state)
        self.fill(selected.values, places, flat, like)
        places.write(k, selected.where)
        return selected

    def fill(self, values: Tensor, places: Places, flat: Tensor, like: Like) -> None:
        """
        Raises:
            NonFinite: as :meth:`select` says.
        """
        places.gather(flat, values[: len(places)])
        values[len(places) :] = 0
        if self.nonfinite == "raise" and not finite(values):
            raise not_finite(flat, like, self)

    def place(self, values: Tensor, where: Tensor, like: Like, state: State) -> Tensor:
        places = read(where, like.numel, values.numel(), self)
        out = torch.zeros(like.numel, dtype=like.dtype)
        places.scatter(values[: len(places)], out)
        return out.view(like.shape)

    def subtract(self, values: Tensor, where: Tensor, y: Tensor, like: Like, state: State) -> None:
        places = read(where, like.numel, values.numel(), self)
        places.scatter(places.gather(y).sub_(values[: len(places)]), y)


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
