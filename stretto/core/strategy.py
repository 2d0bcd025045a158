"""A way to synchronise, as a value: what is exchanged, when, how, how it is written, and how it lands."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias

from stretto.core.codec import Codec, State
from stretto.core.exchange import Exchange, Mixing

if TYPE_CHECKING:
    from torch import Tensor

Signal: TypeAlias = Literal["gradient", "drift"]


class Schedule(Protocol):
    """When an exchange is due, and of what."""

    kind: ClassVar[str] = "schedule"

    @property
    def fragments(self) -> int:
        """Into how many the parameters are cut, to be exchanged in turn; 0: none are, only who trained what."""
        ...

    def due(self, step: int) -> bool: ...
    def turn(self, step: int) -> int:
        """Which fragment's turn it is, at a step at which one is due."""
        ...


class Outer(Protocol):
    """How an agreed mean lands on the model."""

    kind: ClassVar[str] = "outer"

    def init(self, like: Tensor) -> State: ...
    def update(self, mean: Tensor, state: State, part: float = 1.0) -> tuple[Tensor, State]:
        """The step to be taken against it; ``part``: it is no mean of all, but that much of a round of them."""
        ...


class Landing(Protocol):
    """When what all agreed on lands on an agent's own weights, and what remains of these."""

    kind: ClassVar[str] = "landing"

    @property
    def behind(self) -> int:
        """Steps that agents train on while it is under way."""
        ...

    def land(self, own: Tensor, left: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """This agent's new weights.

        Args:
            own, left: its own weights now, and those whose drift was sent.
            before, after: what all agreed on, the last time and this time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Beside:
    """What some agents mix among themselves, between two agreements of all: by ``mixing``, when ``schedule`` says.

    Agents train on meanwhile if it is ``behind``: what it changed is added when the next one is due.
    """

    schedule: Schedule
    mixing: Mixing
    behind: bool = False


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What x when x how x wire x landing. A value: print it, hash it, send it, compare it.

    ``beside`` all that: what only some of the agents do together.
    """

    kind: ClassVar[str] = "strategy"

    signal: Signal
    schedule: Schedule
    exchange: Exchange
    codec: Codec
    outer: Outer
    landing: Landing
    beside: Beside | None = None
    text: str = field(compare=False)

    def __str__(self) -> str:
        return self.text

    @cached_property
    def digest(self) -> str:
        return hashlib.blake2s(self.text.encode(), digest_size=8).hexdigest()
