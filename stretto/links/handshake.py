"""Mutual proof of a shared secret over a connected stream, before anything else is said. No I/O until :func:`prove`.

Theory of operation. Four fixed-size messages; ``D`` dials, ``L`` listens::

    D → L   hello    magic, version, side, purpose, epoch, rank, peer, nonce        60 bytes
    L → D   hello    the same, of the listener                                      60 bytes
    D → L   proof    HMAC(key, "dialer"   | binding | hello D | hello L)            32 bytes
    L → D   verdict  status, HMAC(key, "listener" status | binding | both hellos)   33 bytes

Both hellos are under both proofs, so nothing that was claimed can be altered, replayed (the nonces) or reflected (the
labels). ``binding`` names the channel: empty on one machine, the SHA-256 of the server's certificate under TLS
(RFC 5929, *tls-server-end-point*), so that a man in the middle, who must show another certificate, makes the proofs
differ. Magic and version come first in every version there will ever be: two versions can always tell each other so.

What a stranger learns: our version, and that the secret did not fit. Which rank or epoch did not fit is told, under
proof, only to those who have the secret. Whoever listens where we dial gets one HMAC to try guesses against: secrets
must be long and random, not words.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

from stretto.errors import PeerLost, Refused, UsageError

VERSION: Final = 1
MAGIC: Final = b"STRETTO\n"
ANYONE: Final = -1
COORDINATOR: Final = -2
DEADLINE: Final = 10.0
"""Seconds a stranger has for the whole proof. Ours take milliseconds; nobody has a reason to change it."""

_LINGER: Final = 1.0
_LINGER_BYTES: Final = 1 << 16
_prefix = struct.Struct("!8sH")
_hello = struct.Struct("!8sHBBQii32s")
_verdict = struct.Struct("!B32s")
_PROOF_BYTES: Final = 32


class Purpose(IntEnum):
    """What the connection is for, once proven."""

    RENDEZVOUS = 1
    LINK = 2


class _Status(IntEnum):
    WELCOME = 0
    SECRET = 1
    PURPOSE = 2
    EPOCH = 3
    RANK = 4


@dataclass(frozen=True, slots=True)
class Claim:
    """Who a side says it is: ``rank`` of ``epoch``, speaking to ``peer``.

    A listener may leave ``peer`` :data:`ANYONE`; at a rendezvous, where ranks are uids of processes, the dialer too.
    """

    purpose: Purpose
    epoch: int
    rank: int
    peer: int


class Handshake:
    """One side of the proof: send :meth:`opening`, then what each :meth:`receive` returns, until :attr:`done`.

    Read at most :attr:`wants` bytes at a time, so that what follows the proof stays in the stream. When ``receive``
    raises, send :attr:`farewell` (it tells the other side why) and close.

    Args:
        secret: what both sides know.
        claim: who we are, and whom we mean.
        dials: True for the side that connected.
        binding: names the channel (see :meth:`stretto.links.tls.Certificate.binding`); empty without TLS.
        who: the other side in error messages.
    """

    def __init__(self, secret: str, claim: Claim, *, dials: bool, binding: bytes = b"", who: str = "the peer") -> None:
        if not secret:
            raise UsageError("the secret is empty; give every agent the same long random one")
        self._key = hmac.digest(b"stretto handshake", secret.encode(), "sha256")
        self._claim = claim
        self._dials = dials
        self._binding = binding
        self._who = who
        self._nonce = os.urandom(32)
        self._mine = self._hello_bytes(claim.peer)
        self._theirs = b""
        self._peer: Claim | None = None
        self._stage: Literal["hello", "proof", "verdict", "done", "failed"] = "hello"
        self._buffer = bytearray()
        self.farewell = b""

    @property
    def done(self) -> bool:
        return self._stage == "done"

    @property
    def peer(self) -> Claim:
        """Who the other side proved to be. Only when :attr:`done`."""
        if not self.done or self._peer is None:
            raise RuntimeError("nothing is proven yet")
        return self._peer

    @property
    def who(self) -> str:
        return self._who

    @property
    def wants(self) -> int:
        """The most bytes to read next; 0 when the handshake is over."""
        sizes = {"hello": _hello.size, "proof": _PROOF_BYTES, "verdict": _verdict.size, "done": 0, "failed": 0}
        return sizes[self._stage] - len(self._buffer)

    def opening(self) -> bytes:
        """What to send first: the dialer's hello, or nothing."""
        return self._mine if self._dials else b""

    def receive(self, data: bytes) -> bytes:
        """Take at most :attr:`wants` bytes that arrived; return what to send.

        Raises:
            Refused: the other side is a stranger, another version, another secret, or not whom we mean.
        """
        if len(data) > self.wants:
            raise ValueError(f"{len(data)} bytes given where at most {self.wants} were wanted")
        self._buffer += data
        try:
            if self._stage == "hello":
                self._check_prefix()
            if self.wants:
                return b""
            message = bytes(self._buffer)
            self._buffer.clear()
            return self._take(message)
        except Refused:
            self._stage = "failed"
            self._buffer.clear()
            raise

    def _take(self, message: bytes) -> bytes:
        if self._stage == "hello":
            return self._take_hello(message)
        if self._stage == "proof":
            return self._take_proof(message)
        if self._stage == "verdict":
            self._take_verdict(message)
        return b""

    def _check_prefix(self) -> None:
        if len(self._buffer) < _prefix.size:
            return
        magic, version = _prefix.unpack_from(self._buffer)
        if magic != MAGIC:
            raise Refused(f"{self._who} is not a Stretto peer; check the address and the port")
        if version != VERSION:
            self.farewell = b"" if self._dials else self._mine
            raise Refused(
                f"{self._who} speaks version {version} of the protocol and this agent version {VERSION}; "
                "install the same stretto everywhere"
            )

    def _take_hello(self, hello: bytes) -> bytes:
        _, _, side, purpose, epoch, rank, peer, _ = _hello.unpack(hello)
        if side != (0 if self._dials else 1) or purpose not in set(Purpose):
            raise Refused(f"{self._who} is not a Stretto peer; check the address and the port")
        self._theirs = hello
        self._peer = Claim(Purpose(purpose), epoch, rank, peer)
        if self._dials:
            self._stage = "verdict"
            return self._mac(b"dialer")
        self._stage = "proof"
        self._mine = self._hello_bytes(rank if self._claim.peer == ANYONE else self._claim.peer)
        return self._mine

    def _take_proof(self, proof: bytes) -> bytes:
        if not hmac.compare_digest(proof, self._mac(b"dialer")):
            self.farewell = _verdict.pack(_Status.SECRET, bytes(_PROOF_BYTES))
            raise Refused(self._words(_Status.SECRET))
        status = self._judge()
        verdict = _verdict.pack(status, self._mac(b"listener%d" % status))
        if status is not _Status.WELCOME:
            self.farewell = verdict
            raise Refused(self._words(status))
        self._stage = "done"
        return verdict

    def _take_verdict(self, verdict: bytes) -> None:
        status, proof = _verdict.unpack(verdict)
        if not hmac.compare_digest(proof, self._mac(b"listener%d" % status)) or status not in set(_Status):
            raise Refused(self._words(_Status.SECRET))
        ours = self._judge() if status == _Status.WELCOME else _Status(status)
        if ours is not _Status.WELCOME:
            raise Refused(self._words(ours))
        self._stage = "done"

    def _judge(self) -> _Status:
        mine, theirs = self._claim, self._peer
        assert theirs is not None
        if theirs.purpose != mine.purpose:
            return _Status.PURPOSE
        if theirs.epoch != mine.epoch:
            return _Status.EPOCH
        meant = theirs.peer == mine.rank or (theirs.peer == ANYONE and mine.purpose is Purpose.RENDEZVOUS)
        if not meant or mine.peer not in (ANYONE, theirs.rank):
            return _Status.RANK
        return _Status.WELCOME

    def _words(self, status: _Status) -> str:
        mine, theirs = self._claim, self._peer
        assert theirs is not None
        if status is _Status.PURPOSE:
            return f"{self._who} is there for {theirs.purpose.name}, this agent for {mine.purpose.name}; check the port"
        if status is _Status.EPOCH:
            return f"{self._who} is in epoch {theirs.epoch} and this agent in epoch {mine.epoch}; enter again"
        if status is _Status.RANK:
            return (
                f"{self._who} is {_name(theirs.rank)} and means {_name(theirs.peer)}; "
                f"this is {_name(mine.rank)} and means {_name(mine.peer)}; check the addresses"
            )
        return f"{self._who} has another secret; give every agent the same STRETTO_SECRET"

    def _hello_bytes(self, peer: int) -> bytes:
        c = self._claim
        return _hello.pack(MAGIC, VERSION, int(self._dials), c.purpose, c.epoch, c.rank, peer, self._nonce)

    def _mac(self, label: bytes) -> bytes:
        first, second = (self._mine, self._theirs) if self._dials else (self._theirs, self._mine)
        text = b"%d:%b%d:%b" % (len(label), label, len(self._binding), self._binding) + first + second
        return hmac.digest(self._key, text, hashlib.sha256)


def prove(sock: socket.socket, handshake: Handshake, deadline_seconds: float = DEADLINE) -> Claim:
    """Drive ``handshake`` over a connected blocking socket (plain or TLS); who the other side proved to be.

    The socket stays open, also on failure: it is the caller's to close.

    Raises:
        Refused: the other side is not one of ours, or took longer than the deadline over the whole of it.
        PeerLost: the connection broke on the way.
    """
    ends = time.monotonic() + deadline_seconds
    before = sock.gettimeout()
    try:
        sock.settimeout(deadline_seconds)
        sock.sendall(handshake.opening())
        while not handshake.done:
            sock.settimeout(max(ends - time.monotonic(), 0.001))
            data = sock.recv(handshake.wants)
            if not data:
                raise PeerLost(f"{handshake.who} closed the connection before it proved the secret; does it run?")
            sock.sendall(handshake.receive(data))
        sock.settimeout(before)
        return handshake.peer
    except Refused:
        _say_goodbye(sock, handshake.farewell)
        raise
    except TimeoutError:
        raise Refused(
            f"{handshake.who} did not prove the secret within {deadline_seconds:g} s; is it a Stretto agent?"
        ) from None
    except OSError as e:
        raise PeerLost(f"the connection to {handshake.who} broke during the handshake ({e}); does it run?") from e


def _say_goodbye(sock: socket.socket, farewell: bytes) -> None:
    """Send the reason, then read a little: closing over unread bytes would reset the connection and lose the reason."""
    if not farewell:
        return
    ends = time.monotonic() + _LINGER
    try:
        sock.settimeout(_LINGER)
        sock.sendall(farewell)
        socket.socket.shutdown(sock, socket.SHUT_WR)
        left = _LINGER_BYTES
        while left > 0 and (remaining := ends - time.monotonic()) > 0:
            sock.settimeout(remaining)
            data = sock.recv(4096)
            if not data:
                return
            left -= len(data)
    except OSError:
        return


def _name(rank: int) -> str:
    return {ANYONE: "anyone", COORDINATOR: "the coordinator"}.get(rank, f"agent {rank}")
