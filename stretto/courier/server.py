"""A server's whole life: a courier without a trainer, in the run until all agents have left, or it is told to go."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from stretto.courier.desk import Desk
from stretto.courier.place import Place
from stretto.courier.presence import Presence
from stretto.courier.sharing import Sharing
from stretto.errors import NetworkError, StrettoError
from stretto.session import ServerSession

PATIENCE: Final = 300.0
"""Seconds in no epoch after which a server takes it that no agent will come any more."""
_LOOK: Final = 0.5


def serve(place: Place) -> None:
    """Hold slots, and answer who asks, in this process; returns when it is over. SIGTERM and SIGINT end it well.

    Raises:
        Refused: the run does not let us in.
        NetworkError: no agent has been there for long.
    """
    server = _Server(place)
    with _heard(signal.SIGTERM, signal.SIGINT) as fd:
        server.run(fd)


class _Server:
    """``fd`` becomes readable when we are told to go."""

    def __init__(self, place: Place) -> None:
        uid, sharing = place.seat.uid, Sharing(Desk())
        self._inside = place.inside
        self._error: StrettoError | None = None
        self._going = False
        self._presence = Presence(
            place, sharing, lambda around: ServerSession(uid, around, self._fail), dismissed=self._go
        )

    def run(self, fd: int) -> None:
        loop, session = self._presence.loop, self._presence.session
        loop.watch(fd, select.EPOLLIN, lambda _: self._told(fd))
        loop.spawn(self._look_for_agents())
        if not self._inside:
            loop.call(session.knock)
        self._presence.run()
        if self._error is not None:
            raise self._error

    def _told(self, fd: int) -> None:
        os.eventfd_read(fd)
        self._go()

    def _go(self) -> None:
        if not self._going:
            self._going = True
            self._presence.loop.spawn(self._presence.leave())

    def _fail(self, error: StrettoError) -> None:
        self._error = self._error or error
        self._presence.over = True

    async def _look_for_agents(self) -> None:
        """They say goodbye to whoever leads, and to us, for who leads may leave too; or all are lost without a word."""
        presence, last = self._presence, time.monotonic()
        while not presence.over:
            await presence.loop.sleep(_LOOK)
            mesh, now = presence.around.mesh, time.monotonic()
            agents = set(mesh.epoch.agents.uids)
            if agents and agents <= presence.around.left:
                self._go()
            elif presence.session.inside:
                last = now
                for uid in agents - presence.around.left:
                    mesh.reach(uid)
            elif now - last > PATIENCE and not self._going:
                why = f"{presence.name} has heard of no agent for {PATIENCE / 60:g} minutes; start the run again"
                self._fail(NetworkError(why))


@contextmanager
def _heard(*numbers: signal.Signals) -> Iterator[int]:
    """A descriptor that becomes readable with one of these signals, which do nothing else."""
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    before = {number: signal.signal(number, lambda *_: os.eventfd_write(fd, 1)) for number in numbers}
    try:
        yield fd
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        os.close(fd)
