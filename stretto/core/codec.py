"""How a tensor is written on the wire, and what that remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from stretto.core.like import Like
from stretto.core.link import Payload

if TYPE_CHECKING:
    from torch import Tensor

State: TypeAlias = Any
"""What a part remembers from one use to the next: None, or plain values (dicts, lists, numbers, texts, tensors)."""
Groups: TypeAlias = "tuple[tuple[Codec, tuple[tuple[int, int], ...]], ...]"
"""Codecs, each with the ranges of elements that it is for."""


class Codec(Protocol):
    """How a tensor is written on the wire, and read again. A value; what it remembers is its state.

    A codec whose payloads are ``summable`` has them averaged over agents on their way: floating tensors, the same
    shapes at all. It may ask for several such ``passes``: then :meth:`refine` makes of the mean of one payload the
    next, and :meth:`decode` reads the mean of the last. Any other codec's payload is one uint8 vector, which is read
    by itself.
    """

    kind: ClassVar[str] = "codec"

    @property
    def summable(self) -> bool: ...
    @property
    def unbiased(self) -> bool:
        """Is what is decoded, over all draws, the tensor on average?"""
        ...

    @property
    def contracts(self) -> bool:
        """Is what is lost always less than what was there? Error feedback needs it."""
        ...

    @property
    def passes(self) -> int: ...
    @property
    def exact(self) -> bool:
        """Is :meth:`size` what every payload takes, and not only the most?"""
        ...

    def groups(self, like: Like) -> Groups:
        """Which codec is for which elements; all for itself, but where it only chooses among others."""
        ...

    def init(self, like: Like) -> State: ...
    def encode(self, x: Tensor, like: Like, state: State) -> tuple[Payload, State]:
        """``x`` is never written, and the payload may share its memory.

        Raises:
            NonFinite: it holds NaN or infinity, and the codec was not told to let them pass.
        """
        ...

    def refine(self, mean: Payload, like: Like, state: State) -> tuple[Payload, State]: ...
    def decode(self, payload: Payload, like: Like, state: State) -> tuple[Tensor, State]:
        """A tensor of ``like``'s shape and dtype, of this or another agent's payload, or of the mean of all.

        Raises:
            DamagedPayload: no agent encodes that.
        """
        ...

    def kept(self, like: Like, state: State) -> Tensor | None:
        """What was held back so far and is to be sent yet (float32, flat); None where nothing ever is."""
        ...

    def take(self, y: Tensor, payload: Payload, like: Like, state: State) -> None:
        """``y`` (flat, of ``like``'s dtype) loses what this agent's own payload, the last one, holds of it."""
        ...

    def size(self, like: Like) -> int:
        """Bytes of the payload (of all passes together); where the data decide, the most that it can be."""
        ...

    def bound(self, x: Tensor) -> float:
        """The largest L2 norm of what may be lost of ``x``, for any draw."""
        ...
