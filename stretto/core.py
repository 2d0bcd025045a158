"""The values every layer shares, and the Protocols between layers. No I/O, no clock, nothing mutable.

A strategy is written once as ``async def`` over a :class:`Link`, and runs unchanged on sockets and in the simulator:
all it can do is post, receive, sleep and run things together, and only a driver knows what these mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Payload: TypeAlias = "tuple[Tensor, ...]"
State: TypeAlias = Any
Signal: TypeAlias = Literal["gradient", "drift", "weights"]

ANY = -1
"""Receive from whoever sends first."""

UNNAMED = -3


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


@dataclass(frozen=True, slots=True)
class Role:
    """What one agent does in one tree: receives from ``children``, sends to ``parent`` (itself at the root).

    ``height`` is its longest way down to a leaf and ``depth`` its way up to the root, in edges.
    """

    tree: int
    parent: int
    children: tuple[int, ...]
    height: int
    depth: int


class Graph(Protocol):
    """Trees to reduce up and broadcast down; the buffer is cut into ``trees`` equal parts, part i travels on tree i."""

    @property
    def size(self) -> int: ...
    @property
    def trees(self) -> int: ...
    def roles(self, rank: int) -> tuple[Role, ...]:
        """This agent's role in every tree, by tree number."""
        ...


class Topology(Protocol):
    """Who talks to whom, as data: nobody is contacted here."""

    kind: ClassVar[str] = "topology"

    def __hash__(self) -> int: ...
    def graph(self, hosts: tuple[int, ...]) -> Graph:
        """The graph for ``len(hosts)`` agents; ``hosts[rank]`` numbers the machine of each."""
        ...

    def seconds(self, hosts: tuple[int, ...], nbytes: int, network: Network) -> float:
        """Predicted time of an all-reduce of ``nbytes``: what ``auto`` chooses by."""
        ...


class Codec(Protocol):
    """How a tensor is written on the wire. ``summable``: payloads may be added on their way."""

    kind: ClassVar[str] = "codec"

    @property
    def summable(self) -> bool: ...
    def init(self, like: Tensor) -> State: ...
    def encode(self, x: Tensor, state: State) -> tuple[Payload, State]: ...
    def decode(self, payload: Payload, state: State) -> tuple[Tensor, State]: ...


class Exchange(Protocol):
    """How the agents reach agreement on tensors."""

    async def mean(
        self, link: Link, xs: Sequence[Tensor], codec: Codec, state: State, step: int
    ) -> tuple[list[Tensor], State]:
        """The mean over agents of each of ``xs``, which may be overwritten with it; and the codec's new state."""
        ...


class Schedule(Protocol):
    """When an exchange is due."""

    kind: ClassVar[str] = "schedule"

    def due(self, step: int) -> bool: ...


class Outer(Protocol):
    """How an agreed mean lands on the model."""

    kind: ClassVar[str] = "outer"

    def init(self, like: Tensor) -> State: ...
    def update(self, mean: Tensor, state: State) -> tuple[Tensor, State]: ...


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What x when x how x wire x landing. A value: print it, hash it, send it, compare it."""

    kind: ClassVar[str] = "strategy"

    signal: Signal
    schedule: Schedule
    exchange: Exchange
    codec: Codec
    outer: Outer
    text: str = field(compare=False)

    def __str__(self) -> str:
        return self.text

    @cached_property
    def digest(self) -> str:
        return hashlib.blake2s(self.text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Member:
    """One agent as the others know it. ``host`` names its machine; addresses are tried in order.

    ``uid`` names this life of it, and ``label`` is its number in the launch, by which people know it and which a
    restart keeps; by default both follow from ``rank``. A member without the model (``healed`` is false) is given it.
    """

    rank: int
    host: str
    pid: int
    addresses: tuple[str, ...]
    uid: int = 0
    label: int = UNNAMED
    healed: bool = True

    def __post_init__(self) -> None:
        if not self.uid:
            object.__setattr__(self, "uid", self.rank + 1)
        if self.label == UNNAMED:
            object.__setattr__(self, "label", self.rank)


@dataclass(frozen=True, slots=True)
class Epoch:
    """A span of steps inside which nothing changes but the weights."""

    number: int
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def hosts(self) -> tuple[int, ...]:
        """Machines numbered in order of first appearance, by rank."""
        seen: dict[str, int] = {}
        return tuple(seen.setdefault(m.host, len(seen)) for m in self.members)

    @property
    def uids(self) -> tuple[int, ...]:
        return tuple(m.uid for m in self.members)

    @property
    def labels(self) -> tuple[int, ...]:
        return tuple(m.label for m in self.members)
