"""An agent's way in: find whoever leads, prove the secret, say who we are, and wait for a view."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from stretto.core import FIRST_SERVER
from stretto.errors import NetworkError, PeerLost, ProtocolError, UsageError
from stretto.links.handshake import ANYONE
from stretto.links.tls import make_certificate
from stretto.membership.compose import listed, named
from stretto.membership.connection import Door
from stretto.membership.dialling import in_order, reach
from stretto.membership.listening import each
from stretto.membership.messages import (
    LONGEST,
    UNNUMBERED,
    Decide,
    Decoder,
    Denied,
    Elsewhere,
    Hello,
    Message,
    Pulse,
    Seat,
    View,
    Vote,
    Waiting,
    encode,
)
from stretto.membership.rendezvous import new_uid
from stretto.membership.stores.clerk import doors
from stretto.membership.stores.store import open_store

PATIENCE: Final = 300.0
"""Seconds to go on looking for a coordinator that does not answer: slow clusters start their hosts minutes apart."""
_FIRST_WORD: Final = 2.0
_EVERY: Final = 10.0
_SHORTEST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A place in a run: ``seat`` is ours, in ``view``; or ``view`` is without us, and we are a newcomer.

    ``sock`` is the control connection with process ``head``: blocking, maybe TLS, nothing of it read ahead.
    """

    seat: Seat
    view: View
    sock: socket.socket
    head: int

    @property
    def rank(self) -> int | None:
        """Ours in the view; None for a newcomer."""
        return next((rank for rank, seat in enumerate(self.view.seats) if seat.uid == self.seat.uid), None)


def enter(
    address: str,
    secret: str,
    rank: int | None,
    size: int,
    *,
    addresses: Sequence[str],
    control: Sequence[str],
    host: str,
    pid: int,
    serves: bool = False,
    vote: Vote | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Entry:
    """Enter the run whose coordinator, or whoever leads after it, is at ``address``; returns when there is a view.

    Args:
        address: one, or several with commas between them, tried in turn; or a store's, asked who is here.
        rank: our number among the agents, or the servers; None for the lowest one that is free.
        size: how many agents the first view is to have.
        addresses: where the other agents reach us for data, the most useful first.
        control: and for the control connections.
        host: names our machine (:func:`stretto.links.addresses.machine_id`).
        serves: we hold parameters for the agents, and train nothing.
        vote: of the process that had our label before us (:func:`stretto.membership.keeping.kept`).
        say: told, in words, whom we wait for.

    Raises:
        UsageError: the run denies us: another size, a label that is taken, a run that is over.
        Refused: another secret or version, or something else listens there.
        NetworkError: nobody answers there, for longer than any start takes.
        PeerLost: the coordinator went before all had come.
    """
    label = UNNUMBERED if rank is None else rank + FIRST_SERVER * serves
    seat = Seat(new_uid(), label, host, pid, tuple(addresses), tuple(control), serves=serves)
    return _Visitor(address, secret, Hello(seat, size, 0, vote), say).enter()


class _Visitor:
    """On its way in; ``_places``: where to try before the addresses that we were told."""

    def __init__(self, address: str, secret: str, hello: Hello, say: Callable[[str], object]) -> None:
        self._address, self._secret, self._hello, self._say = address, secret, hello, say
        self._door = Door(secret, hello.seat.uid, cache(make_certificate))
        self._who = named(hello.seat.label, serves=hello.seat.serves)
        self._places: list[str] = []
        self._begun = time.monotonic()
        self._speak_at = self._begun + _FIRST_WORD

    def enter(self) -> Entry:
        pause = _SHORTEST_PAUSE
        while True:
            try:
                self._places = self._places or self._look()
                place = self._places.pop(0)
                sock, head = reach(place, self._door, ANYONE, f"the coordinator at {place}")
                entry = self._visit(sock, head, place)
            except (OSError, PeerLost) as e:
                self._complain(e.strerror if isinstance(e, OSError) and e.strerror else str(e))
            else:
                if entry is not None:
                    return entry
            if not self._places:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _look(self) -> list[str]:
        if "://" not in self._address:
            return each(self._address)
        with contextlib.closing(open_store(self._address, self._secret)) as store:
            places = doors(store)
        if not places:
            raise PeerLost("nobody is here yet")
        return list(places)

    def _visit(self, sock: socket.socket, head: int, place: str) -> Entry | None:
        """Say who we are and wait; None when somebody else leads, or nobody yet."""
        try:
            sock.sendall(encode(self._hello))
            return self._wait(sock, head, place)
        except BaseException:
            sock.close()
            raise

    def _wait(self, sock: socket.socket, head: int, place: str) -> Entry | None:
        decoder = Decoder(LONGEST)
        missing: tuple[int, ...] | None = None
        while True:
            message = _read(sock, decoder)
            match message:
                case Decide(view):
                    mine = next((seat for seat in view.seats if seat.uid == self._hello.seat.uid), self._hello.seat)
                    return Entry(mine, view, sock, head)
                case Waiting():
                    missing = message.missing
                    if time.monotonic() > self._speak_at:
                        self._say(f"{self._who} waits for {_agents(missing)} to come to {place}{_how(missing)}")
                case Denied():
                    raise UsageError(f"the coordinator at {place} says: {message.why}")
                case Elsewhere():
                    self._places = in_order(message.leader, self._hello.seat.host)
                    break
                case None if missing is not None:
                    absent = _agents(missing)
                    raise NetworkError(
                        f"{self._who} lost the coordinator at {place} while {absent} had not come; start again"
                    )
                case None:
                    break
                case Pulse():
                    pass
                case _:
                    raise ProtocolError(f"what leads at {place} sent a {type(message).__name__} before a view")
        sock.close()
        return None

    def _complain(self, why: str) -> None:
        """Of one who does not answer, yet."""
        now, where = time.monotonic(), self._address
        if now - self._begun > PATIENCE:
            raise NetworkError(
                f"{self._who} found no coordinator at {where} in {PATIENCE:g} s ({why}); "
                "is the launcher or agent 0 running there, and does a firewall close the port?"
            )
        if now > self._speak_at:
            self._say(f"{self._who} waits for the coordinator at {where} ({why}); it may still be starting")
            self._speak_at = now + _EVERY


def _read(sock: socket.socket, decoder: Decoder) -> Message | None:
    """The next message and not a byte more; None at the end."""
    while True:
        try:
            data = sock.recv(decoder.wants)
        except ConnectionError:
            return None
        if not data:
            return None
        for message in decoder.feed(data):
            return message


def _how(labels: Sequence[int]) -> str:
    """What starts them, where that is not what started us."""
    if not any(label >= FIRST_SERVER for label in labels):
        return ""
    return "; start the same line on every machine of the cluster file, or stretto server by hand"


def _agents(labels: Sequence[int]) -> str:
    return listed(labels) if labels else "the others"
