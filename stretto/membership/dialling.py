"""Dialling: a proven connection to a process, or what it means that there is none. It blocks, so it has threads."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from stretto.errors import NetworkError, PeerLost, Refused
from stretto.links import addresses as places
from stretto.links.handshake import DEADLINE, Claim, Handshake, Purpose, prove
from stretto.links.loop import Loop
from stretto.membership.connection import Door, keep_alive
from stretto.membership.messages import Seat
from stretto.membership.suspicion import Suspicion, ending

CONNECTING: Final = 3.0
"""Seconds for a TCP connection: one of its first packets may be lost."""
PROVING: Final = 5.0
"""Seconds for the proof of one whose place we know: several round trips of a bad network."""

Found: TypeAlias = socket.socket | Suspicion


class Dialler:
    """Dials processes, each in a short-lived thread; ``found(uid, socket or why not)`` is called in the loop's thread.

    Args:
        host: our machine (:func:`stretto.links.addresses.machine_id`).
    """

    def __init__(self, loop: Loop, door: Door, host: str, found: Callable[[int, Found], object]) -> None:
        self._loop, self._door, self._host, self._found = loop, door, host, found
        self._sought: set[int] = set()
        self._open = True
        self._lock = threading.Lock()  # over _open: the loop is not woken once it may be closed

    def dial(self, seat: Seat) -> bool:
        """Begin to look for ``seat``; False if we are at it already."""
        if seat.uid in self._sought:
            return False
        self._sought.add(seat.uid)
        threading.Thread(target=self._seek, args=(seat,), name="stretto-dial", daemon=True).start()
        return True

    def cancel(self, uid: int) -> None:
        """Whatever is found of it, it is not wanted any more."""
        self._sought.discard(uid)

    def close(self) -> None:
        """Find nobody any more."""
        with self._lock:
            self._open = False
        self._sought.clear()

    def _seek(self, seat: Seat) -> None:
        found: Found = Suspicion("cut", "it has no address that can be reached from here")
        for address in in_order(seat, self._host):
            found = _try(address, self._door, seat)
            if isinstance(found, socket.socket):
                break
        with self._lock:
            if self._open:
                self._loop.call(lambda: self._tell(seat.uid, found))
            elif isinstance(found, socket.socket):
                found.close()

    def _tell(self, uid: int, found: Found) -> None:
        if uid in self._sought:
            self._sought.discard(uid)
            self._found(uid, found)
        elif isinstance(found, socket.socket):
            found.close()


def dial(address: str, door: Door, peer: int, who: str, patience: float = DEADLINE) -> socket.socket:
    """As :func:`reach`, where one knows whom."""
    return reach(address, door, peer, who, patience)[0]


def reach(address: str, door: Door, peer: int, who: str, patience: float = DEADLINE) -> tuple[socket.socket, int]:
    """A proven connection, blocking, under TLS off this machine, to what listens at ``address``; and its uid.

    Args:
        peer: the uid that must listen there, or :data:`~stretto.links.handshake.ANYONE`.
        who: the other side in error messages.
        patience: seconds for the proof.

    Raises:
        OSError: nobody listens there, or the connection broke.
        PeerLost: it hung up before the proof was over.
        Refused: another secret or version, or something else listens there.
    """
    sock: socket.socket = socket.create_connection(places.split(address), timeout=CONNECTING)
    try:
        if sock.getsockname() == sock.getpeername():
            raise ConnectionRefusedError(None, "nobody listens there, and the port was lent to ourselves")
        binding = b""
        if not places.is_here(sock.getpeername()[0]):
            sock.settimeout(patience)
            sock = door.certificate().dial(sock)
            binding = door.certificate().binding(sock)
        sock.settimeout(None)
        keep_alive(sock)
        claim = Claim(Purpose.RENDEZVOUS, 0, door.uid, peer)
        proven = prove(sock, Handshake(door.secret, claim, dials=True, binding=binding, who=who), patience)
        return sock, proven.rank
    except ssl.SSLEOFError as e:
        sock.close()
        raise PeerLost(f"{who} hung up during TLS") from e
    except ssl.SSLError as e:
        sock.close()
        raise Refused(f"{who} does not speak TLS as we do ({e.reason or e}); check the port") from e
    except BaseException:
        sock.close()
        raise


def in_order(seat: Seat, host: str) -> list[str]:
    """Where to try to reach ``seat`` from machine ``host``: on its own loopback first, from elsewhere never."""
    loopback = [a for a in seat.control if places.is_loopback(places.split(a)[0])]
    others = [a for a in seat.control if a not in loopback]
    return loopback + others if seat.host == host else others


def _try(address: str, door: Door, seat: Seat) -> Found:
    begun = time.monotonic()
    try:
        return dial(address, door, seat.uid, f"agent {seat.label} at {address}", PROVING)
    except Refused as e:
        if time.monotonic() - begun >= PROVING:
            return Suspicion("stopped", f"its machine answers at {address}, and its process does not ({e})")
        return Suspicion("closed", f"somebody else answers at {address}: {e}")
    except PeerLost as e:
        return Suspicion("closed", str(e))
    except ConnectionRefusedError:
        return _at(ending("refused"), address)
    except (OSError, NetworkError) as e:
        return _at(ending("unreachable"), f"{address}: {getattr(e, 'strerror', None) or e}")


def _at(suspicion: Suspicion, where: str) -> Suspicion:
    return Suspicion(suspicion.what, f"{suspicion.why} ({where})")
