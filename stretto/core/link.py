"""One agent's end of the network: post, receive, sleep, run things together."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Payload: TypeAlias = "tuple[Tensor, ...]"

ANY = -1
"""Receive from whoever sends first."""


@dataclass(frozen=True, slots=True)
class Message:
    """What arrived: from whom, and the tensors (views of ``into`` where the receive named one)."""

    src: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class Network:
    """What the agents agreed the network is like: the slowest pair's one-way delay (s) and rate (bytes/s)."""

    delay: float = 50e-6
    rate: float = 1e9


class Link(Protocol):
    """One agent's end of the network, for one exchange of one epoch.

    Messages match on (src, tag). Between one pair and for one tag they keep their order. Nothing is lost: a message
    arrives or the receiver learns that its sender is gone.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def hosts(self) -> tuple[int, ...]:
        """``hosts[rank]`` numbers the machine that agent is on."""
        ...

    @property
    def network(self) -> Network: ...

    def post(self, dst: int, payload: Payload, tag: int = 0) -> None:
        """Send without waiting. The tensors must not change before :meth:`drain` returns."""
        ...

    def recv(self, src: int = ANY, tag: int = 0, into: Tensor | None = None) -> Awaitable[Message]:
        """Post a receive now, and await it now or later. ``into`` (1-d, contiguous) is filled without a copy.

        Raises:
            PeerLost: at once, when ``src`` is or becomes unreachable.
        """
        ...

    def sleep(self, seconds: float) -> Awaitable[None]: ...

    def together(self, *coroutines: Coroutine[Any, Any, Any]) -> Awaitable[list[Any]]:
        """Run coroutines side by side; their results in order. The first error ends the others."""
        ...

    @property
    def idle(self) -> bool:
        """Has everything that was posted left?"""
        ...

    def drain(self) -> Awaitable[None]:
        """Wait until everything posted has left, so that its tensors may be written again."""
        ...

    def now(self) -> float:
        """Seconds on the link's clock: real, or virtual."""
        ...


@runtime_checkable
class Native(Protocol):
    """A link whose transport has an all-reduce of its own (shared memory, NCCL, Gloo)."""

    def all_reduce(self, x: Tensor, scale: float) -> Awaitable[None]:
        """``x`` (1-d) becomes ``scale`` times the sum over agents, in place, the same bits everywhere."""
        ...
