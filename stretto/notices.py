"""What those need who exchange beside their training: a wire to the others, and notices to tell them what is wished.

The first thing of every agreement is a *notice*: that this agent is there, whether it is time for a checkpoint, whether
somebody wants in, and whether the training is lost. Its mean tells all of it, in the same agreement.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from stretto.buckets import Room
from stretto.session import Closing

NOTICE: Final = 4
"""Elements of a notice: it was given, a checkpoint is wished, somebody is at the door, weights are not finite."""


@dataclass(frozen=True, slots=True)
class Given:
    """One bucket of an agreement: the ``part``-th of its group, what is sent, and where its mean comes."""

    part: int
    flat: Tensor
    mean: Tensor


class Wire(Protocol):
    """How this agent reaches the others, and what it tells its owner."""

    @property
    def size(self) -> int:
        """How many agents there are now."""
        ...

    @property
    def drawn(self) -> int | None:
        """Batches drawn so far, by all alike; None where nothing is dealt."""
        ...

    @property
    def ends(self) -> bool:
        """Was the batch drawn last the last one, as far as one knows?"""
        ...

    def wishes(self) -> tuple[bool, bool]:
        """Is it time for a checkpoint, and does somebody want in?"""
        ...

    def agree(self, given: Sequence[Given], *, fence: bool) -> Awaitable[Closing]:
        """Begin to make each a mean over agents; await it to learn how that ended."""
        ...

    def mix(self, part: int, x: Tensor, clock: int) -> Awaitable[bool]:
        """Begin to mix ``x`` in place; await whether that came about."""
        ...

    def closed(self, closing: Closing, *, save: bool, but: int) -> None:
        """An agreement ended: all that was drawn before is trained, but the last ``but`` batches."""
        ...


def notices(room: Room) -> tuple[Tensor, Tensor]:
    """Memory for a notice and its mean, on lines of their own."""
    memory = room.allocate(4 * 32 * NOTICE).view(torch.float32)
    return memory[:NOTICE], memory[-NOTICE:] if room.apart else memory[:NOTICE]


def noticed(flat: Tensor, wishes: tuple[bool, bool], *, lost: bool = False) -> None:
    """Write a notice: we are there, and wish this; ``lost``: we have nothing finite to give."""
    flat.copy_(torch.tensor([1.0, *wishes, lost]))
