"""Links over byte streams (TCP, TLS, Unix sockets): one connection a pair, many exchanges over it, made when first needed.

Theory of operation. A :class:`Mesh` holds this agent's connections; a :class:`StreamLink` is one exchange's view of it (a channel).
Posting queues header and tensor memory, uncopied; a turn's posts to one peer leave in one ``sendmsg``. A frame's body is read
straight into the tensor of the receive that waits for it, or into fresh memory when nobody waits yet.

Back-pressure: on one channel at most ``WINDOW`` bytes (and the message that crosses the line) are on their way to an agent beyond what
its coroutines have taken; the sender holds the rest. The receiver returns credit as messages are taken, and lends more when a
coroutine waits for a message that the window itself may be holding back, so no order of receives can deadlock. The memory for
messages that came before anybody waited is bounded by ``WINDOW`` for each peer and exchange in flight.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from stretto.core import ANY, Epoch, Message, Network, Payload
from stretto.errors import PeerLost, ProtocolError
from stretto.links import wire
from stretto.links.loop import Loop, Waiter

WINDOW = 4 << 20
MOST_CHANNELS = 4096
_GATHER = 32
_READ_FRAMES = 4


class Connection:
    """One peer's stream: queued sends, a frame reader, counters. ``sock`` is None until dialled."""

    def __init__(self, mesh: Mesh, peer: int) -> None:
        self.mesh, self.peer = mesh, peer
        self.sock: socket.socket | None = None
        self._queue: deque[tuple[memoryview, StreamLink | None]] = deque()
        self._reader = wire.FrameReader(self._place)
        self._writing = False
        self._receipt: Receipt | None = None
        self.sent = self.received = 0
        self.said_goodbye = False

    def open(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.mesh.loop.watch(sock.fileno(), select.EPOLLIN, self._ready)
        self.flush()

    def queue(self, views: list[memoryview], channel: StreamLink | None) -> None:
        if channel is not None:
            channel.unsent += len(views)
        for v in views:
            self._queue.append((v, channel))
        self.mesh.loop.dirty.add(self.flush)

    def flush(self) -> None:
        """Write until the queue is empty or the stream is full."""
        if self.sock is None:
            return
        try:
            while self._queue:
                count = self._write()
                if not count:
                    break
                self.sent += count
                self._written(count)
        except (OSError, ssl.SSLError) as e:
            self.mesh.lose(self.peer, f"writing to it failed: {e}")
            return
        if bool(self._queue) != self._writing:
            self._writing = bool(self._queue)
            events = select.EPOLLIN | (select.EPOLLOUT if self._writing else 0)
            self.mesh.loop.watch(self.sock.fileno(), events, self._ready)

    def _write(self) -> int:
        assert self.sock is not None
        try:
            if isinstance(self.sock, ssl.SSLSocket):
                return self.sock.send(self._queue[0][0])
            if len(self._queue) == 1:
                return self.sock.send(self._queue[0][0])
            return self.sock.sendmsg([view for view, _ in islice(self._queue, _GATHER)])
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0

    def _written(self, count: int) -> None:
        while count:
            view, channel = self._queue[0]
            if count < len(view):
                self._queue[0] = (view[count:], channel)
                return
            count -= len(view)
            self._queue.popleft()
            if channel is not None:
                channel.left()

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self.flush()
        if events & ~select.EPOLLOUT and self.sock is not None:
            self._read()

    def _read(self) -> None:
        assert self.sock is not None
        frames = 0
        try:
            while frames < _READ_FRAMES:
                space = self._reader.space()
                count = self.sock.recv_into(space)
                if not count:
                    self._ended()
                    return
                self.received += count
                for frame, body in self._reader.advance(count):
                    frames += 1
                    self._take(frame, body)
                if count < len(space) and not isinstance(self.sock, ssl.SSLSocket):
                    return
            if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
                self.mesh.loop.call(self._read_on)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except ProtocolError as e:
            self.mesh.lose(self.peer, f"it sent what no agent sends ({e})")
        except OSError as e:
            self.mesh.lose(self.peer, f"reading from it failed: {e}")

    def _read_on(self) -> None:
        if self.sock is not None:
            self._read()

    def _ended(self) -> None:
        self.mesh.lose(self.peer, "it left" if self.said_goodbye else "its connection closed")

    def _place(self, frame: wire.Frame) -> memoryview | None:
        channel = self.mesh.link(frame.channel)
        self._receipt = channel.claim(self.peer, frame)
        return self._receipt.memory if self._receipt is not None else None

    def _take(self, frame: wire.Frame, body: bytearray | memoryview) -> None:
        if frame.kind == wire.CREDIT:
            self.mesh.credit(self.peer, frame.channel, frame.tag << 10)
            return
        if frame.kind == wire.BYE:
            self.said_goodbye = True
            return
        receipt, self._receipt = self._receipt, None
        channel = self.mesh.link(frame.channel)
        if receipt is not None:
            channel.taken(self.peer, frame.length)
            receipt.complete(Message(self.peer, (receipt.into,)))
        else:
            channel.deliver(self.peer, frame, body)

    def close(self, error: PeerLost | None = None) -> None:
        """Drop the stream; a body that was half read fails its receive with ``error``."""
        if self.sock is not None:
            self.mesh.loop.forget(self.sock.fileno())
            self.sock.close()
            self.sock = None
        if self._receipt is not None:
            self._receipt.complete(error=error)
            self._receipt = None
        while self._queue:
            _, channel = self._queue.popleft()
            if channel is not None:
                channel.left()


class Receipt(Waiter):
    """A posted receive."""

    __slots__ = ("into", "key", "memory")

    def __init__(self, key: tuple[int, int], into: Tensor | None) -> None:
        super().__init__()
        self.key = key
        self.into = into
        self.memory = wire.view_of(into) if into is not None else None


class StreamLink:
    """One exchange's end of the mesh (a channel), a :class:`stretto.core.Link`: receives that wait, messages that came early,
    credit both ways.
    """

    def __init__(self, mesh: Mesh, number: int) -> None:
        self.mesh, self.number = mesh, number
        self.rank, self.size = mesh.rank, mesh.size
        self.hosts = mesh.hosts
        self.unsent = 0
        self._posted: dict[tuple[int, int], deque[Receipt]] = {}
        self._early: dict[tuple[int, int], deque[tuple[Message, int]]] = {}
        self._held: dict[int, deque[tuple[list[memoryview], int]]] = {}
        self._flying: dict[int, int] = {}
        self._untaken: dict[int, int] = {}
        self._owed: dict[int, int] = {}
        self._lent: dict[int, int] = {}
        self._drained: Waiter | None = None

    @property
    def network(self) -> Network:
        return self.mesh.network

    def post(self, dst: int, payload: Payload, tag: int = 0) -> None:
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
        if not self.unsent and self._drained is not None:
            drained, self._drained = self._drained, None
            drained.complete()

    def sleep(self, seconds: float) -> Waiter:
        return self.mesh.loop.sleep(seconds)

    def together(self, *coroutines: Coroutine[Any, Any, Any]) -> Waiter:
        return self.mesh.loop.together(coroutines)

    def now(self) -> float:
        return time.monotonic()

    def drain(self) -> Waiter:
        waiter = Waiter()
        if self.unsent:
            self._drained = waiter
        else:
            waiter.complete()
        return waiter

    def recv(self, src: int = ANY, tag: int = 0, into: Tensor | None = None) -> Receipt:
        receipt = Receipt((src, tag), into)
        early = self._find_early(src, tag)
        if early is not None:
            self._hand_over(receipt, early)
            return receipt
        lost = self.mesh.why_lost(src)
        if lost is not None:
            receipt.complete(error=lost)
            return receipt
        if src != ANY:
            self.mesh.reach(src)
            self._lend(src)
        self._posted.setdefault((src, tag), deque()).append(receipt)
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
                if receipt.into is not None:
                    receipt.complete(*_copied(message, receipt.into))
                else:
                    receipt.complete(message)
                return
        self._early.setdefault((src, frame.tag), deque()).append((message, frame.length))
        self._untaken[src] = self._untaken.get(src, 0) + frame.length
        if any(k[0] == src for k in self._posted):
            self._lend(src)

    def taken(self, src: int, length: int) -> None:
        self._owed[src] = self._owed.get(src, 0) + length
        if self._owed[src] >= WINDOW // 2:
            self._repay(src)

    def _repay(self, src: int) -> None:
        owed = self._owed.get(src, 0)
        self._owed[src] = owed & 1023
        self._grant(src, owed >> 10)

    def _lend(self, src: int) -> None:
        """What we wait for may be behind a window that is full of what we do not wait for: open it further."""
        untaken, limit = self._untaken.get(src, 0), WINDOW + self._lent.get(src, 0)
        if untaken + self._owed.get(src, 0) >= limit:
            self._repay(src)
        if untaken >= limit - 1024:
            self._lent[src] = self._lent.get(src, 0) + WINDOW
            self._grant(src, WINDOW >> 10)

    def _grant(self, src: int, kib: int) -> None:
        connection = self.mesh.reach(src)
        if connection is not None:
            connection.queue([memoryview(wire.control(wire.CREDIT, self.number, kib))], None)

    def lose(self, src: int, error: PeerLost) -> None:
        """Fail what waits for ``src``, and forget what was to go there."""
        for key in [k for k in self._posted if k[0] in (src, ANY)]:
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


@dataclass(frozen=True, slots=True)
class Totals:
    """Bytes of this agent's streams: as handed to the system, and (TCP) as the system put them on the wire."""

    sent: int
    received: int
    wire_sent: int
    wire_received: int
    connections: int


class Mesh:
    """This agent's connections in one epoch.

    ``dial(peer)`` starts making the connection to a peer, in the background, and ends in :meth:`adopt` or :meth:`lose`.
    """

    def __init__(self, loop: Loop, rank: int, epoch: Epoch, dial: Callable[[int], None]) -> None:
        self.loop, self.rank, self.epoch = loop, rank, epoch
        self.size, self.hosts = epoch.size, epoch.hosts
        self.network = Network()
        self._dial = dial
        self._peers: dict[int, Connection] = {}
        self._links: dict[int, StreamLink] = {}
        self._lost: dict[int, PeerLost] = {}
        self._past = [0, 0, 0, 0]

    def link(self, number: int) -> StreamLink:
        """The link of exchange ``number``; a peer's messages may have made it before us."""
        link = self._links.get(number)
        if link is None:
            if len(self._links) >= MOST_CHANNELS:
                raise ProtocolError(f"more than {MOST_CHANNELS} exchanges at once")
            link = self._links[number] = StreamLink(self, number)
        return link

    def forget(self, number: int) -> None:
        """An exchange is over; its channel is not used again."""
        self._links.pop(number, None)

    def credit(self, peer: int, number: int, amount: int) -> None:
        """Credit that comes after its exchange is over is of no use to anyone."""
        channel = self._links.get(number)
        if channel is not None:
            channel.credit(peer, amount)

    def reach(self, peer: int) -> Connection | None:
        """The connection to ``peer``, dialled if need be; None when it is lost."""
        connection = self._peers.get(peer)
        if connection is None:
            if peer in self._lost:
                return None
            connection = self._peers[peer] = Connection(self, peer)
            self._dial(peer)
        return connection

    def adopt(self, peer: int, sock: socket.socket) -> None:
        """A proven connection to ``peer`` is there."""
        connection = self._peers.setdefault(peer, Connection(self, peer))
        if connection.sock is not None or peer in self._lost:
            sock.close()
            return
        connection.open(sock)

    def why_lost(self, peer: int) -> PeerLost | None:
        if peer == ANY:
            return next(iter(self._lost.values())) if len(self._lost) >= self.size - 1 > 0 else None
        return self._lost.get(peer)

    def lose(self, peer: int, why: str) -> None:
        """``peer`` is gone: whoever waits for it learns at once."""
        if peer in self._lost:
            return
        error = PeerLost(f"agent {self.rank} lost agent {peer}: {why}", peer)
        self._lost[peer] = error
        connection = self._peers.pop(peer, None)
        if connection is not None:
            self._count(connection)
            connection.close(error)
        for channel in list(self._links.values()):
            channel.lose(peer, error)

    def _count(self, connection: Connection) -> None:
        for i, n in enumerate((connection.sent, connection.received, *on_wire(connection))):
            self._past[i] += n

    def totals(self) -> Totals:
        sums = list(self._past)
        for c in self._peers.values():
            for i, n in enumerate((c.sent, c.received, *on_wire(c))):
                sums[i] += n
        return Totals(*sums, connections=sum(c.sock is not None for c in self._peers.values()))

    def bye(self) -> None:
        """Tell the peers that this agent leaves on purpose, and send no more."""
        for c in list(self._peers.values()):
            if c.sock is not None:
                c.queue([memoryview(wire.control(wire.BYE))], None)
                c.flush()
            if c.sock is not None:
                socket.socket.shutdown(c.sock, socket.SHUT_WR)

    def close(self) -> None:
        for c in self._peers.values():
            c.close()
        self._peers.clear()


_TCP_INFO_BYTES = 232
_HEADERS = 66


def on_wire(connection: Connection) -> tuple[int, int]:
    """(sent, received) bytes with TCP/IP and Ethernet headers and retransmissions, from the kernel's TCP_INFO (tcp(7)).

    Fields of ``struct tcp_info`` (linux/tcp.h): segs_out/segs_in at 136/140, bytes_sent at 200, bytes_received at 128.
    Headers are 14 + 20 + 32 bytes a segment (Ethernet, IPv4, TCP with timestamps). Zero for Unix sockets.
    """
    sock = connection.sock
    if sock is None or sock.family == socket.AF_UNIX:
        return 0, 0
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if len(raw) < 208:
        return connection.sent, connection.received
    (bytes_received,) = struct.unpack_from("=Q", raw, 128)
    segments_out, segments_in = struct.unpack_from("=II", raw, 136)
    (bytes_sent,) = struct.unpack_from("=Q", raw, 200)
    return bytes_sent + segments_out * _HEADERS, bytes_received + segments_in * _HEADERS

