"""A process in a run: its loop, its connections, and the membership in a thread beside it, whatever it is there for."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from stretto.core import called
from stretto.courier.around import Around
from stretto.courier.place import Place
from stretto.courier.sharing import Sharing
from stretto.errors import PeerLost, Refused
from stretto.links.loop import Loop
from stretto.membership import Runner, View
from stretto.membership.stores import open_store
from stretto.session import Attendant
from stretto.trace import Trace

LINGER: Final = 1.0
"""Seconds that a process which leaves waits for its peers to leave too, and to have read everything."""


S = TypeVar("S", bound=Attendant)


class Presence(Generic[S]):
    """Made in the process, and the thread, that runs it. ``session(around)`` makes the session.

    Args:
        trainer: the process that trains; 0: none does.
        begun: the latest round that it has begun; asked in the membership's thread.
        dismissed: we serve, and all agents have left.
    """

    def __init__(
        self,
        place: Place,
        sharing: Sharing,
        session: Callable[[Around], S],
        *,
        trainer: int = 0,
        begun: Callable[[], int] = lambda: 0,
        dismissed: Callable[[], object] = lambda: None,
    ) -> None:
        self._place = place
        self.name = called(place.seat.label)
        self.trace = Trace(place.trace, place.seat.label)
        self.loop = Loop()
        self.around = Around(self.loop, place, sharing, self.trace.event)
        self.session = session(self.around)
        self.leaving = self.over = False
        self._runner = Runner(
            place.seat,
            place.secret,
            view=place.view,
            lead=place.lead,
            head=place.head,
            listener=place.control,
            doors=place.doors,
            min_agents=place.min_agents,
            state=place.state,
            trainer=trainer,
            round=begun,
            store=open_store(place.store, place.secret) if place.store else None,
            freeze=self._in_loop(self._freeze),
            hold=self._in_loop(self.session.hold),
            install=self._in_loop(self._install),
            out=self._in_loop(self._out),
            deny=self._in_loop(self._deny),
            dismiss=self._in_loop(dismissed),
            say=self.say,
            event=self.trace.event,
        )
        self.around.ear = self._runner

    def run(self) -> None:
        """Until it is :attr:`over`."""
        if self._place.inside:
            self.session.install(self._place.view)
        self._runner.start()
        while not self.over:
            self.loop.turn()
        self._runner.close()
        self.around.close()

    async def leave(self) -> None:
        """Say goodbye, and read on while the others read."""
        self.leaving = self.around.deaf = True
        self._runner.leave()
        self.around.mesh.bye()
        until = time.monotonic() + LINGER
        while time.monotonic() < until and self.around.mesh.totals().connections:
            await self.loop.sleep(0.01)
        self.over = True

    def say(self, text: str) -> None:
        print(f"stretto: {text}", file=sys.stderr, flush=True)

    # What the membership tells, in the loop's thread

    def _in_loop(self, function: Callable[..., object]) -> Callable[..., None]:
        return lambda *args: self.loop.call(lambda: function(*args))

    def _freeze(self, number: int) -> None:
        self._runner.frozen(number, self.session.freeze())

    def _install(self, view: View) -> None:
        if self._place.link == "c10d" and not self.leaving:
            self.session.refuse(
                PeerLost(f"{self.name} cannot go on ({view.why}): link c10d loses all with one; use link tcp")
            )
            return
        self.session.install(view)

    def _out(self, why: str) -> None:
        if self.leaving:
            return
        when = "as soon as it may" if self._place.seat.serves else "at its next step"
        self.say(f"{self.name} is out: {why}; it comes back {when}")
        self.session.out()

    def _deny(self, why: str) -> None:
        if not self.leaving:
            self.session.refuse(Refused(f"{self.name} is not let in: {why}"))
            threading.Thread(target=self._runner.close, daemon=True).start()
