"""The values every layer shares, and the Protocols between layers. No I/O, no clock, nothing mutable.

A strategy is written once as ``async def`` over a :class:`Link`, and runs unchanged on sockets and in the simulator:
all it can do is post, receive, sleep and run things together, and only a driver knows what these mean.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Payload: TypeAlias = "tuple[Tensor, ...]"
State: TypeAlias = Any
"""What a part remembers from one use to the next: None, or plain values (dicts, lists, numbers, texts, tensors)."""
LayerRole: TypeAlias = Literal["weight", "bias", "norm", "embedding"]
Groups: TypeAlias = "tuple[tuple[Codec, tuple[tuple[int, int], ...]], ...]"
"""Codecs, each with the ranges of elements that it is for."""
Signal: TypeAlias = Literal["gradient", "drift"]

ANY = -1
"""Receive from whoever sends first."""

UNNAMED = -3


def mixed(*numbers: int) -> int:
    """63 bits from all of them, so that neighbouring seeds have nothing in common."""
    raw = ":".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2s(raw, digest_size=8).digest()) >> 1


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


@dataclass(slots=True)
class Cell:
    """Where an exchange keeps what its codec remembers. It changes in the moment in which that leaves for others.

    ``like`` tells what is exchanged; ``state`` is None before the first time.
    """

    like: Like
    state: State = None


class Exchange(Protocol):
    """How the agents reach agreement on tensors."""

    async def mean(self, link: Link, x: Tensor, codec: Codec, cell: Cell) -> Tensor:
        """The mean of ``x`` over agents, which may be overwritten with it."""
        ...

    def kept(self, codec: Codec, cell: Cell, hosts: tuple[int, ...]) -> Tensor | None:
        """What was held back of this agent's ``x`` so far (float32, flat), among agents on these ``hosts``."""
        ...


class Mixing(Protocol):
    """How an agent's tensor is mixed with those of some others, who need not all agree.

    What comes of it is this agent's alone. It may fail at any agent, and then that one's tensor stays as it was.
    """

    kind: ClassVar[str] = "mixing"

    async def mix(self, link: Link, x: Tensor, codec: Codec, cell: Cell, clock: int) -> Tensor:
        """What ``x`` (1-d, floating, of ``cell.like``; it is not written) becomes at this agent, as new memory.

        Args:
            clock: the agents' common count of steps: who talks to whom may follow from it.
            cell: what this agent remembers of it; None again when an epoch begins.

        Raises:
            PeerLost: somebody who was needed is gone.
        """
        ...


@runtime_checkable
class Served(Protocol):
    """A mixing in which agents answer others while they themselves do something else."""

    async def serve(self, link: Link, codec: Codec, cell: Cell) -> None:
        """Answer whoever asks, from the same ``cell`` and over the same ``link``, until all agree or the epoch ends."""
        ...

    def settle(self, cell: Cell) -> Tensor | None:
        """All are about to agree: give no more, and say what others have added to our tensor that we do not have."""
        ...


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
    def update(self, mean: Tensor, state: State) -> tuple[Tensor, State]: ...


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
