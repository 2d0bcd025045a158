"""An agent's way in: find the coordinator, prove the secret, say who we are, and wait until all have come."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from stretto.core import Epoch, Member, Network
from stretto.errors import NetworkError, PeerLost, ProtocolError, Refused, UsageError
from stretto.links import addresses as places
from stretto.links.handshake import ANYONE, COORDINATOR, Claim, Handshake, Purpose, prove
from stretto.links.tls import make_certificate
from stretto.membership.connection import keep_alive
from stretto.membership.messages import LONGEST_ANSWER, Decoder, Denied, Join, Message, Waiting, Welcome, encode

PATIENCE: Final = 300.0
"""Seconds to go on looking for a coordinator that does not answer: slow clusters start their hosts minutes apart."""
_FIRST_WORD: Final = 2.0
_EVERY: Final = 10.0
_CONNECTING: Final = 5.0
_LONGEST_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A place in an epoch. ``sock`` stays open as long as the agent lives: its end is how the others learn of ours.

    It is blocking, may be TLS, and brings ``Lost`` and ``Left``; nothing of them has been read ahead.
    """

    epoch: Epoch
    rank: int
    network: Network
    sock: socket.socket


def enter(
    address: str,
    secret: str,
    rank: int | None,
    size: int,
    *,
    addresses: Sequence[str],
    host: str,
    pid: int,
    say: Callable[[str], None] = lambda line: None,
) -> Entry:
    """Enter the epoch of ``size`` agents that the coordinator at ``address`` calls; returns when all have come.

    Args:
        rank: ours, or None for the lowest one that is free.
        addresses: where the other agents reach us, the most useful first.
        host: names our machine (:func:`stretto.links.addresses.machine_id`).
        say: told, in words, whom we wait for.

    Raises:
        UsageError: the coordinator denies us: another size, a rank that is taken, an epoch that has begun.
        Refused: another secret or version, or something else listens there.
        NetworkError: no coordinator answers there, for longer than any start takes.
        PeerLost: the coordinator went before all had come.
    """
    who = "an agent" if rank is None else f"agent {rank}"
    sock = _reach(address, secret, rank, who, say)
    try:
        sock.sendall(encode(Join(size, host, pid, tuple(addresses))))
        return _await_welcome(sock, address, who, say)
    except OSError as e:
        sock.close()
        raise PeerLost(f"{who} lost the coordinator at {address} before all had come ({e}); start again") from e
    except BaseException:
        sock.close()
        raise


def _await_welcome(sock: socket.socket, address: str, who: str, say: Callable[[str], None]) -> Entry:
    decoder = Decoder(LONGEST_ANSWER)
    missing: tuple[int, ...] = ()
    speak_at = time.monotonic() + _FIRST_WORD
    while True:
        message = _read(sock, decoder)
        match message:
            case Welcome():
                members = tuple(Member(i, s.host, s.pid, s.addresses) for i, s in enumerate(message.members))
                return Entry(Epoch(message.epoch, members), message.rank, Network(message.delay, message.rate), sock)
            case Waiting():
                missing = message.missing
                if time.monotonic() > speak_at:
                    say(f"{who} waits for {_ranks(missing)} to come to {address}")
            case Denied():
                raise UsageError(f"the coordinator at {address} says: {message.why}")
            case None:
                raise PeerLost(
                    f"{who} lost the coordinator at {address} while {_ranks(missing)} had not come; start again"
                )
            case _:
                raise ProtocolError(f"the coordinator at {address} sent a {type(message).__name__} before a welcome")


def _read(sock: socket.socket, decoder: Decoder) -> Message | None:
    """The next message and not a byte more; None at the end."""
    while True:
        data = sock.recv(decoder.wants)
        if not data:
            return None
        for message in decoder.feed(data):
            return message


def _reach(address: str, secret: str, rank: int | None, who: str, say: Callable[[str], None]) -> socket.socket:
    """A proven connection to the coordinator, which may still be starting."""
    begun = time.monotonic()
    speak_at, pause = begun + _FIRST_WORD, 0.05
    while True:
        try:
            return _connect(address, secret, rank)
        except (OSError, PeerLost) as e:
            why = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        now = time.monotonic()
        if now - begun > PATIENCE:
            raise NetworkError(
                f"{who} found no coordinator at {address} in {PATIENCE:g} s ({why}); "
                "is the launcher or agent 0 running there, and does a firewall close the port?"
            )
        if now > speak_at:
            say(f"{who} waits for the coordinator at {address} ({why}); it may still be starting")
            speak_at = now + _EVERY
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _connect(address: str, secret: str, rank: int | None) -> socket.socket:
    sock: socket.socket = socket.create_connection(places.split(address), timeout=_CONNECTING)
    try:
        if sock.getsockname() == sock.getpeername():
            raise ConnectionRefusedError(None, "nobody listens there, and the port was lent to ourselves")
        binding = b""
        if not places.is_here(sock.getpeername()[0]):
            certificate = make_certificate()
            sock = certificate.dial(sock)
            binding = certificate.binding(sock)
        sock.settimeout(None)
        keep_alive(sock)
        claim = Claim(Purpose.RENDEZVOUS, 0, ANYONE if rank is None else rank, COORDINATOR)
        prove(sock, Handshake(secret, claim, dials=True, binding=binding, who=f"the coordinator at {address}"))
        return sock
    except ssl.SSLEOFError as e:
        sock.close()
        raise PeerLost(f"what listens at {address} hung up during TLS") from e
    except ssl.SSLError as e:
        sock.close()
        raise Refused(f"what listens at {address} does not speak TLS as we do ({e.reason or e}); check the port") from e
    except BaseException:
        sock.close()
        raise


def _ranks(ranks: Sequence[int]) -> str:
    if not ranks:
        return "the others"
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"agent {shown}" if len(ranks) == 1 else f"agents {shown}"
