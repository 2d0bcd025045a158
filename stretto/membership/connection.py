"""One accepted connection, non-blocking, as it climbs from stranger to member: sniff, TLS, proof, messages."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from stretto.errors import ProtocolError, Refused
from stretto.links import addresses as places
from stretto.links import tls
from stretto.links.handshake import ANYONE, COORDINATOR, DEADLINE, Claim, Handshake, Purpose
from stretto.membership.messages import LONGEST_REQUEST, Decoder, Message, encode

HURRY: Final = 1.0
_READ: Final = 1 << 14
_MOST_UNSENT: Final = 1 << 25


class Ended(Exception):
    """The other side closed the connection."""


class Connection:
    """The socket of one agent, or of one stranger until it has proven the secret.

    ``key`` names it to the roll; ``member``: it has joined; ``leaving``: we have said our last word.
    """

    def __init__(
        self,
        key: int,
        sock: socket.socket,
        peer: tuple[str, int],
        secret: str,
        certificate: Callable[[], tls.Certificate],
    ) -> None:
        self.key = key
        self.sock = sock
        self.ip = places.plain(peer[0])
        self.who = places.join(self.ip, peer[1])
        self.deadline = time.monotonic() + DEADLINE
        self.member = False
        self.leaving = False
        self._secret = secret
        self._certificate = certificate
        self._handshake: Handshake | None = None
        self._decoder = Decoder(LONGEST_REQUEST)
        self._unsent = bytearray()
        self._tls_writes = False
        self._step = self._sniff
        sock.setblocking(False)
        keep_alive(sock)

    @property
    def rank(self) -> int | None:
        """The rank it proved; None while unproven, or when it has none of its own."""
        if self._handshake is None or not self._handshake.done or self._handshake.peer.rank == ANYONE:
            return None
        return self._handshake.peer.rank

    @property
    def called(self) -> str:
        if self._handshake is None or not self._handshake.done:
            return f"a stranger at {self.who}"
        return f"an agent at {self.who}" if self.rank is None else f"agent {self.rank} at {self.who}"

    @property
    def wants_write(self) -> bool:
        return bool(self._unsent) or self._tls_writes

    def read(self) -> list[Message]:
        """What has arrived, one read further up the stages.

        Raises:
            Refused: it is not one of ours.
            ProtocolError: it is, and talks nonsense.
            Ended: it closed.
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

    def send(self, message: Message) -> None:
        """Send now, and what does not fit when :meth:`flush` is called."""
        self._send(encode(message))

    def flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self.sock.send(self._unsent)]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass

    def say_goodbye(self) -> None:
        """After our last word, read on until the other side closes: closing over unread bytes would lose that word."""
        if self._handshake is not None:
            self._send(self._handshake.farewell)
        socket.socket.shutdown(self.sock, socket.SHUT_WR)
        self.leaving, self.member = True, False
        self.deadline = time.monotonic() + HURRY
        self._step = self._ignore

    def shut(self) -> None:
        """Close for everybody: a forked child may hold the same socket."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        self.sock.close()

    def _sniff(self) -> list[Message]:
        first = self.sock.recv(1, socket.MSG_PEEK)
        if not first:
            raise Ended
        if first == tls.FIRST_BYTE:
            self.sock = self._certificate().answer(self.sock, now=False)
            self._step = self._shake
        elif places.is_here(self.ip):
            self._begin_proof(b"")
        else:
            raise Refused(f"{self.who} is on another machine and does not speak TLS; is it a Stretto agent?")
        return []

    def _shake(self) -> list[Message]:
        assert isinstance(self.sock, ssl.SSLSocket)
        self.sock.do_handshake()
        self._begin_proof(self._certificate().fingerprint)
        return []

    def _begin_proof(self, binding: bytes) -> None:
        claim = Claim(Purpose.RENDEZVOUS, 0, COORDINATOR, ANYONE)
        self._handshake = Handshake(self._secret, claim, dials=False, binding=binding, who=self.who)
        self._step = self._prove

    def _prove(self) -> list[Message]:
        assert self._handshake is not None
        self._send(self._handshake.receive(self._received(self._handshake.wants)))
        if self._handshake.done:
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
            raise Ended
        return data

    def _send(self, data: bytes) -> None:
        if len(self._unsent) + len(data) > _MOST_UNSENT:
            raise ProtocolError("it does not read what it is told")
        self._unsent += data
        self.flush()


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel notice within seconds that the machine at the other end is gone, whatever this process does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 7000)
