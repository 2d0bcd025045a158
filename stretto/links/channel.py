"""A link over streams: one exchange's messages, told apart from all others on the same connections by its number.

Back-pressure. On one channel at most ``WINDOW`` bytes (and the message that crosses the line) are on their way to an
agent beyond what its coroutines have taken; the sender holds the rest. The receiver returns credit as messages are
taken, and lends more when a coroutine waits for a message that the window itself may be holding back, so no order of
receives can deadlock. The memory for messages that came before anybody waited is bounded by ``WINDOW`` for each peer
and exchange in flight.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stretto.core import ANY, Message, Network, Payload
from stretto.errors import PeerLost, ProtocolError
from stretto.links import wire
from stretto.links.loop import Waiter

if TYPE_CHECKING:
    from stretto.links.mesh import Mesh

WINDOW = 4 << 20


class Receipt(Waiter):
    """A posted receive."""

    __slots__ = ("into", "key", "memory")

    def __init__(self, key: tuple[int, int], into: Tensor | None) -> None:
        super().__init__()
        self.key = key
        self.into = into
        self.memory = wire.view_of(into) if into is not None else None


class StreamLink:
    """A :class:`stretto.core.Link`: receives that wait, messages that came early, credit both ways.

    Its users know ranks; inside, everything is kept by uid, as messages may come before we know their sender's rank.
    """

    def __init__(self, mesh: Mesh, number: int) -> None:
        self.mesh, self.number = mesh, number
        self.rank = self.size = 0
        self.hosts: tuple[int, ...] = ()
        self._whole = False
        self.unsent = 0
        self._posted: dict[tuple[int, int], deque[Receipt]] = {}
        self._early: dict[tuple[int, int], deque[tuple[Message, int]]] = {}
        self._held: dict[int, deque[tuple[list[memoryview], int]]] = {}
        self._flying: dict[int, int] = {}
        self._untaken: dict[int, int] = {}
        self._owed: dict[int, int] = {}
        self._lent: dict[int, int] = {}
        self._drains: list[Waiter] = []

    def attach(self) -> None:
        """We are in the epoch of this exchange: from now on it can be used, by ranks."""
        self.rank, self.size = self.mesh.rank, self.mesh.size if self._whole else self.mesh.agents
        self.hosts = self.mesh.hosts[: self.size]

    def widen(self) -> None:
        """It is an exchange of all members, servers too."""
        self._whole = True
        self.attach()

    @property
    def network(self) -> Network:
        return self.mesh.network

    def post(self, dst: int, payload: Payload, tag: int = 0) -> None:
        dst = self.mesh.uid_of(dst)
        connection = self.mesh.reach(dst)
        if connection is None:
            return
        head, views, length = wire.encode(self.number, tag, payload)
        frame = [memoryview(head), *views]
        flying = self._flying.get(dst, 0)
        if flying >= WINDOW or dst in self._held:
            self._held.setdefault(dst, deque()).append((frame, length))
            self.unsent += 1
        else:
            self._flying[dst] = flying + length
            connection.queue(frame, self)

    def credit(self, src: int, amount: int) -> None:
        self._flying[src] = self._flying.get(src, 0) - amount
        held = self._held.get(src)
        connection = self.mesh.reach(src)
        while held and connection is not None and self._flying[src] < WINDOW:
            frame, length = held.popleft()
            self._flying[src] += length
            connection.queue(frame, self)
            self.left()
        if held is not None and not held:
            del self._held[src]

    def left(self) -> None:
        self.unsent -= 1
        if not self.unsent:
            drains, self._drains = self._drains, []
            for waiter in drains:
                waiter.complete()

    @property
    def idle(self) -> bool:
        return not self.unsent

    def sleep(self, seconds: float) -> Waiter:
        return self.mesh.loop.sleep(seconds)

    def together(self, *coroutines: Coroutine[Any, Any, Any]) -> Waiter:
        return self.mesh.loop.together(coroutines)

    def now(self) -> float:
        return time.monotonic()

    def drain(self) -> Waiter:
        waiter = Waiter()
        if self.unsent:
            self._drains.append(waiter)
        else:
            waiter.complete()
        return waiter

    def recv(self, src: int = ANY, tag: int = 0, into: Tensor | None = None) -> Receipt:
        src = src if src == ANY else self.mesh.uid_of(src)
        receipt = Receipt((src, tag), into)
        early = self._find_early(src, tag)
        if early is not None:
            self._hand_over(receipt, early)
            return receipt
        lost = self.mesh.why_lost(src, self.size)
        if lost is not None:
            receipt.complete(error=lost)
            return receipt
        if src != ANY:
            self.mesh.reach(src)
        self._posted.setdefault((src, tag), deque()).append(receipt)
        for sender in list(self._untaken) if src == ANY else (src,):
            self._keep_open(sender)
        return receipt

    def _find_early(self, src: int, tag: int) -> tuple[Message, int] | None:
        keys = [(src, tag)] if src != ANY else [k for k in self._early if k[1] == tag][:1]
        for key in keys:
            queue = self._early.get(key)
            if queue:
                found = queue.popleft()
                if not queue:
                    del self._early[key]
                return found
        return None

    def _hand_over(self, receipt: Receipt, early: tuple[Message, int]) -> None:
        message, length = early
        self._untaken[message.src] -= length
        self.taken(message.src, length)
        self._complete(receipt, message)

    def _complete(self, receipt: Receipt, message: Message) -> None:
        """``message.src`` is a uid until here, where somebody who knows ranks takes it."""
        message = Message(self.mesh.ranks[message.src], message.payload)
        if receipt.into is not None:
            receipt.complete(*_copied(message, receipt.into))
        else:
            receipt.complete(message)

    def claim(self, src: int, frame: wire.Frame) -> Receipt | None:
        """The posted receive whose memory fits this frame, taken off the list."""
        queue = self._posted.get((src, frame.tag))
        if not queue or queue[0].memory is None or len(frame.shapes) != 1:
            return None
        into = queue[0].into
        dtype, sizes = frame.shapes[0]
        if into is None or len(queue[0].memory) != frame.length or dtype != into.dtype or len(sizes) != 1:
            return None
        return self._pop((src, frame.tag))

    def _pop(self, key: tuple[int, int]) -> Receipt:
        queue = self._posted[key]
        receipt = queue.popleft()
        if not queue:
            del self._posted[key]
        return receipt

    def deliver(self, src: int, frame: wire.Frame, body: bytearray | memoryview) -> None:
        message = Message(src, wire.tensors(frame, body))
        for key in ((src, frame.tag), (ANY, frame.tag)):
            if self._posted.get(key):
                receipt = self._pop(key)
                self.taken(src, frame.length)
                self._complete(receipt, message)
                return
        self._early.setdefault((src, frame.tag), deque()).append((message, frame.length))
        self._untaken[src] = self._untaken.get(src, 0) + frame.length
        self._keep_open(src)

    def taken(self, src: int, length: int) -> None:
        self._owed[src] = self._owed.get(src, 0) + length
        self._keep_open(src)

    def _keep_open(self, src: int) -> None:
        """Return credit in halves of the window, or as soon as the sender may have stopped for want of it.

        The sender stops when what we did not take, and what we took and did not return, fill the window. If untaken
        messages alone fill it, what we wait for may be behind them: then the window grows.
        """
        untaken, owed = self._untaken.get(src, 0), self._owed.get(src, 0)
        limit = WINDOW + self._lent.get(src, 0)
        if owed >= WINDOW // 2 or untaken + owed >= limit:
            self._owed[src] = owed & 1023
            self._grant(src, owed >> 10)
        if untaken >= limit - 1024 and any(k[0] in (src, ANY) for k in self._posted):
            self._lent[src] = self._lent.get(src, 0) + WINDOW
            self._grant(src, WINDOW >> 10)

    def _grant(self, src: int, kib: int) -> None:
        connection = self.mesh.reach(src)
        if connection is not None:
            connection.queue([memoryview(wire.control(wire.CREDIT, self.number, kib))], None)

    def lose(self, src: int, error: PeerLost) -> None:
        """Fail what waits for ``src`` (or for anyone, when nobody is left), and forget what was to go there."""
        nobody = self.mesh.why_lost(ANY, self.size) is not None
        for key in [k for k in self._posted if k[0] == src or (nobody and k[0] == ANY)]:
            for receipt in self._posted.pop(key):
                receipt.complete(error=error)
        for _ in self._held.pop(src, ()):
            self.left()


def _copied(message: Message, into: Tensor) -> tuple[Message | None, BaseException | None]:
    got = message.payload[0] if len(message.payload) == 1 else None
    if got is None or got.dtype != into.dtype or got.numel() != into.numel():
        have = ", ".join(f"{t.dtype} x {t.numel()}" for t in message.payload) or "no tensor"
        return None, ProtocolError(
            f"agent {message.src} sent {have} where {into.dtype} x {into.numel()} was awaited; "
            "the agents do not run the same exchange: compare their models and strategies"
        )
    into.copy_(got.reshape(into.shape))
    return Message(message.src, (into,)), None
