"""A control connection, non-blocking; an accepted one climbs from stranger to proven: sniff, TLS, proof, messages."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from stretto.errors import ProtocolError, Refused
from stretto.links import addresses as places
from stretto.links import tls
from stretto.links.handshake import ANYONE, DEADLINE, Claim, Handshake, Purpose
from stretto.membership.messages import LONGEST, Decoder, Message
from stretto.membership.suspicion import Acks

HURRY: Final = 1.0
_READ: Final = 1 << 16
_MOST_UNSENT: Final = 1 << 25
_TCP_THIN_LINEAR_TIMEOUTS: Final = 16
_tcp_info = struct.Struct("=24xI28xI8xII")
"""Of Linux's ``struct tcp_info``: unacked, last_ack_recv (ms), rtt (µs), rttvar (µs)."""


class Ended(Exception):
    """The other side closed the connection."""


@dataclass(frozen=True, slots=True)
class Door:
    """What we prove on a new connection: that we know the ``secret``, and are ``uid``. The certificate is made late."""

    secret: str
    uid: int
    certificate: Callable[[], tls.Certificate]


class Connection:
    """The socket of one process, or of one stranger until it has proven the secret.

    With a ``door`` it is a stranger's, just accepted; with a ``uid`` that one has proven itself already. ``taken``
    counts the bytes that came; ``leaving``: we have said our last word.
    """

    def __init__(self, sock: socket.socket, ip: str, port: int, *, door: Door | None = None, uid: int | None = None):
        self.sock = sock
        self.fd = sock.fileno()
        self.uid = uid
        self.deadline = time.monotonic() + DEADLINE
        self.leaving = False
        self.taken = 0
        self._ip = places.plain(ip)
        self._at = places.join(self._ip, port)
        self._door = door
        self._handshake: Handshake | None = None
        self._decoder = Decoder(LONGEST)
        self._unsent = bytearray()
        self._tls_writes = False
        self._broken: OSError | None = None
        self._step = self._sniff if uid is None else self._listen
        sock.setblocking(False)
        keep_alive(sock)

    @property
    def who(self) -> str:
        """The other side, as far as it is known."""
        return f"a stranger at {self._at}" if self.uid is None else f"an agent at {self._at}"

    @property
    def wants_write(self) -> bool:
        return bool(self._unsent) or self._tls_writes

    def read(self) -> list[Message]:
        """What has arrived, one read further up the stages.

        Raises:
            Refused: it is not one of ours.
            ProtocolError: it is, and talks nonsense.
            Ended: it closed.
            OSError: the connection broke.
        """
        self._tls_writes = False
        try:
            messages = self._step()
            while isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
                messages += self._step()
            return messages
        except (BlockingIOError, ssl.SSLWantReadError):
            return []
        except ssl.SSLWantWriteError:
            self._tls_writes = True
            return []

    def send(self, data: bytes) -> None:
        """Send encoded messages now, and what does not fit when :meth:`flush` is called.

        Raises:
            ProtocolError: it has not read a lot of what was said before.
        """
        if len(self._unsent) + len(data) > _MOST_UNSENT:
            raise ProtocolError("it does not read what it is told")
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        """A connection that breaks here tells so when it is read: its last words may still be there."""
        try:
            while self._unsent:
                del self._unsent[: self.sock.send(self._unsent)]
            if self.leaving:
                socket.socket.shutdown(self.sock, socket.SHUT_WR)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as e:
            self._broken = e
            self._unsent.clear()

    def say_goodbye(self) -> None:
        """After our last word, read on until the other side closes: closing over unread bytes would lose that word."""
        if self._handshake is not None:
            self._unsent += self._handshake.farewell
        self.leaving = True
        self.deadline = time.monotonic() + HURRY
        self._step = self._ignore
        self.flush()

    def shut(self) -> None:
        """Close for everybody: a forked child may hold the same socket."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        self.sock.close()

    def acks(self) -> Acks:
        """How well the other machine acknowledges what we send, whatever its process does."""
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _tcp_info.size)
        missing, age, rtt, deviation = _tcp_info.unpack(info)
        return Acks(missing, age / 1e3, (rtt + max(4 * deviation, 200_000)) / 1e6)

    def _sniff(self) -> list[Message]:
        assert self._door is not None
        first = self.sock.recv(1, socket.MSG_PEEK)
        if not first:
            raise Ended
        if first == tls.FIRST_BYTE:
            self.sock = self._door.certificate().answer(self.sock, now=False)
            self._step = self._shake
        elif places.is_here(self._ip):
            self._begin_proof(b"")
        else:
            raise Refused(f"{self._at} is on another machine and does not speak TLS; is it a Stretto agent?")
        return []

    def _shake(self) -> list[Message]:
        assert isinstance(self.sock, ssl.SSLSocket) and self._door is not None
        self.sock.do_handshake()
        self._begin_proof(self._door.certificate().fingerprint)
        return []

    def _begin_proof(self, binding: bytes) -> None:
        assert self._door is not None
        claim = Claim(Purpose.RENDEZVOUS, 0, self._door.uid, ANYONE)
        self._handshake = Handshake(self._door.secret, claim, dials=False, binding=binding, who=self._at)
        self._step = self._prove

    def _prove(self) -> list[Message]:
        assert self._handshake is not None
        self.send(self._handshake.receive(self._received(self._handshake.wants)))
        if self._handshake.done:
            self.uid = self._handshake.peer.rank
            self._step = self._listen
        return []

    def _listen(self) -> list[Message]:
        return self._decoder.feed(self._received(_READ))

    def _ignore(self) -> list[Message]:
        self._received(_READ)
        return []

    def _received(self, most: int) -> bytes:
        data = self.sock.recv(most)
        if not data:
            raise self._broken or Ended
        self.taken += len(data)
        return data


def keep_alive(sock: socket.socket) -> None:
    """Send small things at once, and again soon; let the kernel notice a machine that is gone, whatever we do."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_THIN_LINEAR_TIMEOUTS, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 7000)
