"""One peer's byte stream (TCP, TLS or Unix): what is queued to leave, and frames read to where they are awaited.

Queued header and tensor memory is written uncopied; what a turn of the loop queued for one peer leaves in one
``sendmsg``.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from stretto.core import Message
from stretto.errors import PeerLost, ProtocolError
from stretto.links import wire

if TYPE_CHECKING:
    from stretto.links.channel import Receipt, StreamLink
    from stretto.links.mesh import Mesh

_GATHER = 32
_READ_FRAMES = 4
_TCP_INFO_BYTES = 232
_HEADERS = 66


class Peer(ABC):
    """One peer of a mesh, over whatever carries bytes: frames that arrive go to the link they belong to."""

    def __init__(self, mesh: Mesh, peer: int) -> None:
        self.mesh, self.peer = mesh, peer
        self.reader = wire.FrameReader(self._place)
        self.sent = self.received = 0
        self.said_goodbye = False
        self._receipt: Receipt | None = None

    @property
    @abstractmethod
    def is_open(self) -> bool: ...

    @abstractmethod
    def queue(self, views: list[memoryview], channel: StreamLink | None) -> None:
        """Send these bytes in order; ``channel.left()`` is called once for each view that is out of our hands."""

    def forget(self, below: int) -> None:  # noqa: B027  (what is queued goes, where it cannot be taken back)
        """What is queued for channels below a number need not go any more."""

    @abstractmethod
    def goodbye(self) -> None:
        """Say that this agent leaves on purpose; nothing is sent after."""

    @abstractmethod
    def wire_bytes(self) -> tuple[int, int]:
        """(sent, received) as the system counts them, headers and all."""

    def close(self, error: PeerLost | None = None) -> None:
        """Send and take no more; a body that was half read fails its receive with ``error``."""
        if self._receipt is not None:
            self._receipt.complete(error=error)
            self._receipt = None

    def ended(self) -> None:
        """The peer sends no more."""
        why = "it has finished, and left" if self.said_goodbye else "its connection closed"
        self.mesh.lose(self.peer, why, self.said_goodbye)

    def _place(self, frame: wire.Frame) -> memoryview | None:
        channel = self.mesh.channel(frame.channel)
        self._receipt = channel.claim(self.peer, frame) if channel is not None else None
        return self._receipt.memory if self._receipt is not None else None

    def take(self, frame: wire.Frame, body: bytearray | memoryview) -> None:
        if frame.kind == wire.CREDIT:
            self.mesh.credit(self.peer, frame.channel, frame.tag << 10)
            return
        if frame.kind == wire.BYE:
            self.said_goodbye = True
            return
        receipt, self._receipt = self._receipt, None
        channel = self.mesh.channel(frame.channel)
        if channel is None:
            return  # its epoch is over
        if receipt is not None and receipt.into is not None:
            channel.taken(self.peer, frame.length)
            receipt.complete(Message(self.mesh.ranks[self.peer], (receipt.into,)))
        else:
            channel.deliver(self.peer, frame, body)


class _Part(NamedTuple):
    """Bytes to send; ``begins`` a frame, of ``channel`` (None: of no exchange)."""

    view: memoryview
    channel: StreamLink | None
    begins: bool


class Connection(Peer):
    """A peer behind a socket, which is None until dialled."""

    def __init__(self, mesh: Mesh, peer: int) -> None:
        super().__init__(mesh, peer)
        self.sock: socket.socket | None = None
        self._queue: deque[_Part] = deque()
        self._writing = False

    @property
    def is_open(self) -> bool:
        return self.sock is not None

    def open(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.mesh.loop.watch(sock.fileno(), select.EPOLLIN, self._ready)
        self.flush()

    def queue(self, views: list[memoryview], channel: StreamLink | None) -> None:
        if channel is not None:
            channel.unsent += len(views)
        for i, view in enumerate(views):
            self._queue.append(_Part(view, channel, i == 0))
        self.mesh.loop.dirty.add(self.flush)

    def forget(self, below: int) -> None:
        """Whole frames of channels below a number need not go any more. (One that has begun to go must end.)"""
        kept: deque[_Part] = deque()
        dropping = False
        for part in self._queue:
            if part.begins:
                dropping = part.channel is not None and part.channel.number < below
            if not dropping:
                kept.append(part)
        self._queue = kept

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
                return self.sock.send(self._queue[0].view)
            if len(self._queue) == 1:
                return self.sock.send(self._queue[0].view)
            return self.sock.sendmsg([part.view for part in islice(self._queue, _GATHER)])
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0

    def _written(self, count: int) -> None:
        while count:
            view, channel, _ = self._queue[0]
            if count < len(view):
                self._queue[0] = _Part(view[count:], channel, begins=False)
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
                space = self.reader.space()
                count = self.sock.recv_into(space)
                if not count:
                    self.ended()
                    return
                self.received += count
                for frame, body in self.reader.advance(count):
                    frames += 1
                    self.take(frame, body)
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
        why = "it has finished, and left" if self.said_goodbye else "its connection closed"
        self.mesh.lose(self.peer, why, self.said_goodbye)

    def goodbye(self) -> None:
        if self.sock is not None:
            self.queue([memoryview(wire.control(wire.BYE))], None)
            self.flush()
        if self.sock is not None:
            with suppress(OSError):  # the peer may have closed already
                socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def close(self, error: PeerLost | None = None) -> None:
        if self.sock is not None:
            self.mesh.loop.forget(self.sock.fileno())
            self.sock.close()
            self.sock = None
        super().close(error)
        while self._queue:
            channel = self._queue.popleft().channel
            if channel is not None:
                channel.left()

    def wire_bytes(self) -> tuple[int, int]:
        """TCP/IP and Ethernet headers and retransmissions included, from the kernel's TCP_INFO (tcp(7)); zero for Unix.

        Fields of ``struct tcp_info`` (linux/tcp.h): segs_out/segs_in at 136/140, bytes_sent at 200, bytes_received at
        128. Headers are 14 + 20 + 32 bytes a segment (Ethernet, IPv4, TCP with timestamps).
        """
        sock = self.sock
        if sock is None or sock.family == socket.AF_UNIX:
            return 0, 0
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        if len(raw) < 208:
            return self.sent, self.received
        (bytes_received,) = struct.unpack_from("=Q", raw, 128)
        segments_out, segments_in = struct.unpack_from("=II", raw, 136)
        (bytes_sent,) = struct.unpack_from("=Q", raw, 200)
        return bytes_sent + segments_out * _HEADERS, bytes_received + segments_in * _HEADERS
