"""A round: one collective of the trainers, from the first order to the moment at which everybody has its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from stretto.core import Epoch
from stretto.errors import Disagreement

What: TypeAlias = Literal["mean", "broadcast", "agree", "measure", "assume", "mix"]
Cancel: TypeAlias = Callable[[], None]

SPAN = 1 << 15
"""Exchange numbers a round takes; its buckets have the lower half."""
_SHARE = 1 << 14
_HEAL = _SHARE + 1
SETTLE, AGREED = 0, -1
"""Clocks at which nothing is mixed: all are about to agree, and give what they owe; and they have, and forget."""
_MIX = 1 << 39
"""From here on exchanges are numbered that belong to no round."""
_SLOTS = 3 << 38


@dataclass(frozen=True, slots=True)
class Order:
    """One bucket of a round, as the trainer gives it: ``x`` is what it has, and becomes what was agreed.

    ``of`` counts the round's buckets; this one is its ``bucket``-th, and the ``part``-th of its group. ``fence``: this
    is the first backward since a batch was drawn. ``brings``: this text says what all must bring alike. ``round``: its
    number, where the trainer did those before by itself.

    To ``mix`` belongs to no round: it comes after all before ``round``, at ``clock``, the same at all agents.
    """

    number: int
    what: What
    x: Tensor
    group: int = 0
    bucket: int = 0
    of: int = 1
    fence: bool = False
    about: str = ""
    brings: bool = False
    round: int = 0
    part: int = 0
    clock: int = 0

    @property
    def text(self) -> str:
        """What ``x`` (uint8) spells."""
        return bytes(self.x.numpy()).decode()


@dataclass(frozen=True, slots=True)
class Direct:
    """What a trainer does by itself, where all share memory: the lowest ``round`` that it has not passed.

    ``finished``: all have done their part of it, and its results can be had here.
    """

    round: int
    begun: bool
    of: int
    fence: bool
    finished: bool


@dataclass(frozen=True, slots=True)
class Closing:
    """What the trainer learns when a round has ended.

    Attributes:
        round: its number.
        contributors: uids of those whose part is in it.
        whole: these are all that the trainers counted on when they weighed their parts, and nobody else took part.
        epoch: from now on another one, where it has changed; ``rank`` is ours in it.
        alone: it was answered here: this agent is in no epoch (yet).
    """

    round: int
    contributors: tuple[int, ...] = ()
    whole: bool = True
    epoch: Epoch | None = None
    rank: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """Whose parts are in a round, and how many agents took part in its exchanges."""

    contributors: tuple[int, ...]
    size: int


@dataclass(slots=True)
class Round:
    """A round under way. ``shared``: whose parts are in it, where it was finished in an epoch before this one.

    ``verdict``: how agents differ that should not; maybe not all have heard it.
    """

    number: int
    of: int
    fence: bool
    orders: dict[int, Order] = field(default_factory=dict)
    results: dict[int, Tensor] = field(default_factory=dict)
    running: dict[int, Cancel] = field(default_factory=dict)
    shared: Parts | None = None
    donated: bool = False
    direct: bool = False
    verdict: Disagreement | None = None

    @property
    def begun(self) -> bool:
        """All its buckets have been ordered: the trainer waits."""
        return len(self.orders) == self.of

    @property
    def finished(self) -> bool:
        return len(self.results) == self.of

    @property
    def done(self) -> bytes:
        """One byte a bucket: is its result here?"""
        return bytes(bucket in self.results for bucket in range(self.of))

    def cancel(self) -> None:
        for cancel in self.running.values():
            cancel()
        self.running.clear()


def exchange_number(number: int, bucket: int) -> int:
    return number * SPAN + bucket


def share_number(number: int) -> int:
    return number * SPAN + _SHARE


def mix_number(clock: int, part: int) -> int:
    return _MIX + clock * SPAN + part


def settle_number() -> int:
    """Where all agree on who holds what."""
    return _SLOTS


def slot_number(slot: int) -> int:
    """Where a slot of a parameter server is asked for."""
    return _SLOTS + 1 + slot


def serve_number(since: int, part: int) -> int:
    """Where those who mix ask, and are answered, since round ``since``."""
    return _MIX + since * SPAN + _SHARE + part


def heal_number(number: int, rank: int) -> int:
    return number * SPAN + _HEAL + rank % (SPAN - _HEAL)
