"""The data plane of one simulated agent: what :mod:`stretto.links.mesh` and its channels do, on simulated lines.

Lines belong to processes and outlive epochs, links to exchanges of one epoch. What comes for an epoch that is over is
dropped; what comes for one that we have yet to enter waits. Tensors leave a moment after they were posted, as they
are then: who writes them before ``drain`` returns sends something else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from torch import Tensor

from stretto.core import ANY, Epoch, Message, Network, Payload
from stretto.errors import PeerLost, ProtocolError
from stretto.links.loop import Waiter
from stretto.simulate.clock import Clock
from stretto.simulate.lines import Line, Party

EXCHANGE_BITS = 40


class Exchanges(Protocol):
    """The lines for data."""

    clock: Clock

    def dial(self, uid: int, peer: int) -> Line | None: ...
    def sent(self, uid: int, nbytes: int) -> None:
        """One more piece has left ``uid``."""
        ...


class Receipt(Waiter):
    """A posted receive."""

    __slots__ = ("into",)

    def __init__(self, into: Tensor | None) -> None:
        super().__init__()
        self.into = into

    def take(self, message: Message) -> None:
        if self.into is None:
            self.complete(message)
            return
        (got,) = message.payload
        if got.dtype != self.into.dtype or got.numel() != self.into.numel():
            self.complete(error=ProtocolError(f"agent {message.src} sent {got.shape}, awaited: {self.into.shape}"))
            return
        self.into.copy_(got.view(self.into.shape))
        self.complete(Message(message.src, (self.into,)))


class Frame:
    """One message of one exchange. ``payload`` is copied when it leaves."""

    __slots__ = ("link", "number", "payload", "tag")

    def __init__(self, number: int, tag: int, payload: Payload, link: PortLink) -> None:
        self.number, self.tag, self.payload, self.link = number, tag, payload, link

    def leave(self) -> None:
        self.payload = tuple([x.detach().clone() for x in self.payload])
        self.link.left()


class PortLink:
    """A :class:`stretto.core.Link`: one exchange's end at one agent."""

    def __init__(self, port: Port, number: int) -> None:
        self._port, self._number = port, number
        self.rank = self.size = 0
        self.hosts: tuple[int, ...] = ()
        self._whole = False
        self._posted: dict[tuple[int, int], deque[Receipt]] = {}
        self._early: dict[tuple[int, int], deque[Payload]] = {}
        self._unsent = 0
        self._drains: list[Waiter] = []

    def attach(self) -> None:
        """We are in the epoch of this exchange."""
        epoch = self._port.epoch if self._whole else self._port.epoch.agents
        self.rank, self.size, self.hosts = self._port.rank, epoch.size, epoch.hosts

    def widen(self) -> None:
        """It is an exchange of all members, servers too."""
        self._whole = True
        self.attach()

    @property
    def network(self) -> Network:
        return self._port.network

    def post(self, dst: int, payload: Payload, tag: int = 0) -> None:
        self._unsent += 1
        self._port.send(self._port.uids[dst], Frame(self._number, tag, payload, self))

    def left(self) -> None:
        self._unsent -= 1
        if not self._unsent:
            drains, self._drains = self._drains, []
            for waiter in drains:
                waiter.complete()

    def recv(self, src: int = ANY, tag: int = 0, into: Tensor | None = None) -> Awaitable[Message]:
        uid = src if src == ANY else self._port.uids[src]
        receipt = Receipt(into)
        key = (uid, tag) if uid != ANY else next((k for k in self._early if k[1] == tag), (ANY, tag))
        early = self._early.get(key)
        if early:
            receipt.take(Message(self._port.ranks[key[0]], early.popleft()))
            if not early:
                del self._early[key]
            return receipt
        lost = self._port.why_lost(uid, self.size)
        if lost is not None:
            receipt.complete(error=lost)
            return receipt
        if uid != ANY:
            self._port.reach(uid)
        self._posted.setdefault((uid, tag), deque()).append(receipt)
        return receipt

    def deliver(self, uid: int, tag: int, payload: Payload) -> None:
        for key in ((uid, tag), (ANY, tag)):
            queue = self._posted.get(key)
            if queue:
                receipt = queue.popleft()
                if not queue:
                    del self._posted[key]
                receipt.take(Message(self._port.ranks[uid], payload))
                return
        self._early.setdefault((uid, tag), deque()).append(payload)

    def lose(self, uid: int, error: PeerLost) -> None:
        nobody = self._port.why_lost(ANY, self.size) is not None
        for key in [k for k in self._posted if k[0] == uid or (nobody and k[0] == ANY)]:
            for receipt in self._posted.pop(key):
                receipt.complete(error=error)

    @property
    def idle(self) -> bool:
        return not self._unsent

    def sleep(self, seconds: float) -> Awaitable[None]:
        return self._port.clock.sleep(seconds, self._port.owner)

    def together(self, *coroutines: Coroutine[Any, Any, Any]) -> Awaitable[list[Any]]:
        return self._port.clock.together(coroutines)

    def drain(self) -> Awaitable[None]:
        waiter = Waiter()
        if self._unsent:
            self._drains.append(waiter)
        else:
            waiter.complete()
        return waiter

    def now(self) -> float:
        return self._port.clock.now


class Port:
    """One agent's connections for data. ``lost(uid, why)`` is told once an epoch of every member that is lost."""

    def __init__(self, owner: Party, exchanges: Exchanges, slow: bool, lost: Callable[[int, str], None]) -> None:
        self.owner, self.clock = owner, exchanges.clock
        self.network = Network()
        self.epoch = Epoch(0, ())
        self.rank = 0
        self.uids: tuple[int, ...] = ()
        self.ranks: dict[int, int] = {}
        self.lines: dict[int, Line] = {}
        self._exchanges, self._slow, self._on_lost = exchanges, slow, lost
        self._links: dict[int, PortLink] = {}
        self._lost: dict[int, PeerLost] = {}
        self._closed_below = 0
        self._leaving: deque[tuple[int, Frame]] = deque()

    def enter(self, epoch: Epoch, rank: int) -> None:
        self.epoch, self.rank, self.uids = epoch, rank, epoch.uids
        self.ranks = {uid: r for r, uid in enumerate(self.uids)}
        self._close_below(epoch.number << EXCHANGE_BITS)
        for uid in [u for u in self.lines if u not in self.ranks]:
            self.lines.pop(uid).close(self.owner.uid)
        self._lost.clear()
        for number, link in self._links.items():
            if number >> EXCHANGE_BITS == epoch.number:
                link.attach()

    def abandon(self) -> None:
        self._close_below((self.epoch.number + 1) << EXCHANGE_BITS)
        self._leaving = deque(pair for pair in self._leaving if pair[1].number >= self._closed_below)

    def _close_below(self, number: int) -> None:
        self._closed_below = number
        for old in [n for n in self._links if n < number]:
            del self._links[old]

    def link(self, exchange: int, *, whole: bool = False) -> PortLink:
        """Of the epoch's agents; ``whole``: of all its members."""
        number = self.epoch.number << EXCHANGE_BITS | exchange
        link = self._links.get(number) or self._make(number)
        if whole:
            link.widen()
        return link

    def forget(self, exchange: int) -> None:
        self._links.pop(self.epoch.number << EXCHANGE_BITS | exchange, None)

    def _make(self, number: int) -> PortLink:
        link = self._links[number] = PortLink(self, number)
        if number >> EXCHANGE_BITS == self.epoch.number:
            link.attach()
        return link

    def send(self, uid: int, frame: Frame) -> None:
        if self._slow:
            self._leaving.append((uid, frame))
            self.clock.after(0.004, self.owner, self._let_go)
        else:
            self._go(uid, frame)

    def _let_go(self) -> None:
        if self._leaving:
            self._go(*self._leaving.popleft())

    def _go(self, uid: int, frame: Frame) -> None:
        frame.leave()
        line = self.reach(uid)
        if line is not None:
            line.say(self.owner.uid, frame)
            self._exchanges.sent(self.owner.uid, sum(x.nbytes for x in frame.payload))

    def reach(self, uid: int) -> Line | None:
        line = self.lines.get(uid)
        if line is None and uid in self.ranks and uid not in self._lost:
            line = self._exchanges.dial(self.owner.uid, uid)
            if line is not None:
                self.lines[uid] = line
        return line

    def heard(self, line: Line, uid: int, frame: Frame) -> None:
        """It may be ahead of us, and may have been lost in this epoch."""
        if self.lines.setdefault(uid, line) is not line:
            line.close(self.owner.uid)
            return
        if frame.number >= self._closed_below:
            (self._links.get(frame.number) or self._make(frame.number)).deliver(uid, frame.tag, frame.payload)

    def ended(self, line: Line, uid: int, why: str) -> None:
        if self.lines.get(uid) is line:
            self.lose(uid, why)

    def unreached(self, uid: int, number: int) -> None:
        """Dialling it came to nothing."""
        if number == self.epoch.number:
            self.lose(uid, "it does not answer")

    def lose(self, uid: int, why: str) -> None:
        line = self.lines.pop(uid, None)
        if line is not None:
            line.close(self.owner.uid)
        rank = self.ranks.get(uid)
        if rank is None or uid in self._lost:
            return
        error = self._lost[uid] = PeerLost(f"agent {self.rank} lost agent {rank}: {why}", rank)
        for link in list(self._links.values()):
            link.lose(uid, error)
        self._on_lost(uid, why)

    def why_lost(self, uid: int, among: int) -> PeerLost | None:
        """Why ``uid`` is lost, if it is; ANY: all others of the first ``among`` ranks."""
        if uid != ANY:
            return self._lost.get(uid)
        others = among - (self.rank < among)
        lost = [error for error in self._lost.values() if error.peer < among]
        return lost[0] if len(lost) >= others > 0 else None

    def close(self) -> None:
        for line in self.lines.values():
            line.close(self.owner.uid)
        self.lines.clear()
