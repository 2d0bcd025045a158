"""What codecs have in common: defaults, and the form of those that write a flat vector as bytes.

A codec is a frozen dataclass, registered by ``@named``, that fills in :class:`stretto.core.Codec`. Most derive from
:class:`Packed`: they say how many bytes n elements take, and how to fill and read them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stretto.core import Groups, Like, Payload, State, mixed
from stretto.errors import DamagedPayload, NonFinite, UsageError

NonFiniteRule = Literal["raise", "pass"]


@dataclass(frozen=True)
class Base(ABC):
    """The usual: lossy, biased, read by itself, in one pass, and nothing is held back.

    ``paper`` is where it is from, and ``when`` says what it is for: both stand in the table of the documentation.
    """

    kind: ClassVar[str] = "codec"
    paper: ClassVar[str] = ""
    when: ClassVar[str] = ""

    @property
    def summable(self) -> bool:
        return False

    @property
    def unbiased(self) -> bool:
        return False

    @property
    def contracts(self) -> bool:
        return True

    @property
    def passes(self) -> int:
        return 1

    @property
    def exact(self) -> bool:
        return True

    def groups(self, like: Like) -> Groups:
        return ((self, ((0, like.numel),)),)

    def init(self, like: Like) -> State:
        return None

    def refine(self, mean: Payload, like: Like, state: State) -> tuple[Payload, State]:
        raise UsageError(f"{self} has one pass, and was asked for another; this is a bug, please report it")

    def kept(self, like: Like, state: State) -> Tensor | None:
        return None

    def take(self, y: Tensor, payload: Payload, like: Like, state: State) -> None:
        y.sub_(self.decode(payload, like, state)[0].view(-1))

    @abstractmethod
    def encode(self, x: Tensor, like: Like, state: State) -> tuple[Payload, State]: ...
    @abstractmethod
    def decode(self, payload: Payload, like: Like, state: State) -> tuple[Tensor, State]: ...
    @abstractmethod
    def size(self, like: Like) -> int: ...
    @abstractmethod
    def bound(self, x: Tensor) -> float: ...


@dataclass(frozen=True)
class Packed(Base):
    """A flat vector in, bytes out, as many as its length says.

    ``nonfinite``: ``"raise"``, or ``"pass"``: then NaN and infinity come out as NaN, and may take neighbours with them
    (those of their block), so that an AMP scaler finds them.
    """

    nonfinite: NonFiniteRule = field(default="raise", kw_only=True)

    def __post_init__(self) -> None:
        if self.nonfinite not in ("raise", "pass"):
            raise UsageError(f"nonfinite={self.nonfinite!r} is neither 'raise' nor 'pass'")

    @property
    def draws(self) -> bool:
        """Is it random?"""
        return self.unbiased

    @property
    def passing(self) -> bool:
        """May NaN travel?"""
        return self.nonfinite == "pass"

    def init(self, like: Like) -> State:
        return {"draws": 0} if self.draws else None

    def encode(self, x: Tensor, like: Like, state: State) -> tuple[Payload, State]:
        out = torch.empty(self.size(like), dtype=torch.uint8)
        if like.numel:
            flat = x.detach().reshape(-1).contiguous()
            seed = mixed(like.own, state["draws"]) if self.draws else 0
            if not self.pack(flat, out, seed) and not self.passing:
                raise not_finite(floats(flat), like, self)
        return (out,), {"draws": state["draws"] + 1} if self.draws else state

    def decode(self, payload: Payload, like: Like, state: State) -> tuple[Tensor, State]:
        raw = one(payload, self.size(like), self)
        out = torch.empty(like.numel, dtype=like.dtype)
        if like.numel:
            self.unpack(raw, out)
        return out.view(like.shape), state

    def size(self, like: Like) -> int:
        return self.nbytes(like.numel) if like.numel else 0

    @abstractmethod
    def nbytes(self, n: int) -> int:
        """Bytes that n elements take; n is at least 1."""

    @abstractmethod
    def pack(self, x: Tensor, out: Tensor, seed: int) -> bool:
        """Fill ``out`` (uint8) from ``x`` (floating, flat, at least one element). Was all of it finite in float32?"""

    @abstractmethod
    def unpack(self, raw: Tensor, out: Tensor) -> None:
        """Fill ``out`` (floating) from ``raw`` (uint8 of the right length).

        Raises:
            DamagedPayload: that was never packed.
        """


def floats(x: Tensor) -> Tensor:
    """``x`` as a flat contiguous float32 vector, which may be its own memory."""
    return x.detach().reshape(-1).to(torch.float32).contiguous()


def aligned(raw: Tensor, dtype: torch.dtype) -> Tensor:
    """The bytes as ``dtype``: a view, or a copy where they do not lie at a multiple of its size."""
    fits = raw.storage_offset() % dtype.itemsize == 0 and raw.data_ptr() % dtype.itemsize == 0
    return (raw if fits else raw.clone()).view(dtype)


def one(payload: Payload, nbytes: int, codec: Any) -> Tensor:
    """The one uint8 vector of so many bytes that a payload must be.

    Raises:
        DamagedPayload: it is not.
    """
    if len(payload) != 1 or payload[0].dtype != torch.uint8 or payload[0].shape != (nbytes,):
        found = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in payload) or "nothing"
        raise DamagedPayload(
            f"{codec} was given {found} to decode instead of {nbytes} bytes: do all agents run the same version with "
            "the same strategy?"
        )
    return payload[0]


def not_finite(x: Tensor, like: Like, codec: Any) -> NonFinite:
    """The error that names the first parameter in flat ``x`` that holds NaN or infinity."""
    at = int((~x.isfinite()).nonzero()[0])
    first, value = at, float(x[at])
    for piece in like.pieces:
        if at < piece.numel:
            what = f"the gradient of {piece.name}" if piece.name else "the tensor"
            return NonFinite(
                f"{what} holds {value} (element {at}), which {codec} cannot send: look for what made it, or let it "
                "pass with nonfinite='pass'"
            )
        at -= piece.numel
    raise AssertionError(f"element {first} of {like}")
