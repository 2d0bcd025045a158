"""Drives a :class:`~stretto.membership.views.Views` in a thread of its own: loop, control connections, timers, a file.

What others call is put on the loop; what they are told (:class:`Tell`) they are told in the driver's thread.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from stretto.errors import NetworkError, UsageError
from stretto.links import addresses as places
from stretto.links.handshake import ANYONE
from stretto.links.loop import Loop
from stretto.links.tls import make_certificate
from stretto.membership.connection import Door
from stretto.membership.control import Control
from stretto.membership.dialling import reach
from stretto.membership.effects import (
    Deny,
    Dial,
    Dismiss,
    Drop,
    Effect,
    Freeze,
    Hold,
    Install,
    Knock,
    Out,
    Over,
    Save,
    Say,
    Send,
    Suspected,
    Timer,
)
from stretto.membership.keeping import keep
from stretto.membership.laggards import Laggards
from stretto.membership.listening import listen
from stretto.membership.messages import STORE, Hello, Prepare, Propose, View, encode
from stretto.membership.stores.clerk import Answer, Clerk, doors
from stretto.membership.stores.store import Store
from stretto.membership.views import Views

_LOOK: Final = 0.5
_AGAIN: Final = 2.0
"""Seconds between attempts to listen where newcomers look: the coordinator that did may only be stopped."""


def _silent(*args: Any, **fields: Any) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Tell:
    """Whom to tell what, in the driver's thread; see :mod:`~stretto.membership.effects`."""

    freeze: Callable[[int], object] = _silent
    hold: Callable[[], object] = _silent
    install: Callable[[View], object] = _silent
    out: Callable[[str], object] = _silent
    deny: Callable[[str], object] = _silent
    over: Callable[[], object] = _silent
    dismiss: Callable[[], object] = _silent
    say: Callable[[str], object] = _silent
    event: Callable[..., object] = _silent


@dataclass(frozen=True, slots=True)
class Ways:
    """How the driver reaches the world.

    lead: the control connection that there is already, and who is at its other end.
    doors: the addresses where newcomers come in; on this machine we listen there when the coordinator is gone.
    folder: where votes are kept.
    trainer: gives the state letter of the process that trains.
    round: gives the latest round that it has begun.
    store: decides in place of the voters, and tells newcomers who is here; opened, and closed by the driver.
    """

    secret: str
    listeners: Sequence[socket.socket] = ()
    lead: tuple[int, socket.socket] | None = None
    doors: Sequence[str] = ()
    folder: Path | None = None
    trainer: Callable[[], str] = field(default=lambda: "R")
    round: Callable[[], int] = field(default=lambda: 0)
    store: Store | None = None


class Driver:
    """The thread. ``present`` and ``missing`` are as of the last event."""

    def __init__(self, views: Views, ways: Ways, tell: Tell, name: str) -> None:
        self._views, self._ways, self._tell = views, ways, tell
        self._loop: Loop
        self._control: Control
        self._begun = threading.Event()
        self._asked = self._closing = self._knocking = False
        self._guarded: set[str] = set()
        self._clerk: Clerk | None = None
        self.present, self.missing = views.present(), views.missing()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        if self._ways.store is not None:
            self._ways.store.announce(self._views.seat)
        self._thread.start()
        self._begun.wait()

    def close(self) -> None:
        """Let what was said arrive, a second at most, and end. May be called again, or without a start."""
        if self._asked:
            return
        self._asked = True
        if self._thread.ident is None:
            for listener in self._ways.listeners:
                listener.close()
        else:
            self._loop.call(self._begin_to_close)
            self._thread.join()
        if self._ways.store is not None:
            self._ways.store.close()

    def _begin_to_close(self) -> None:
        """In the thread: so the loop is not gone before the last word to it has been said."""
        self._closing = True

    def event(self, kind: str, *what: object) -> None:
        """An event method of the views and its arguments; from any thread."""
        if not self._asked and self._begun.is_set():
            self._loop.call(lambda: self._do(getattr(self._views, kind)(*what)))

    # In the thread

    def _run(self) -> None:
        self._loop = Loop()
        self._control = Control(
            self._loop,
            self._views.seat,
            self._ways.secret,
            self._ways.listeners,
            heard=lambda uid, message: self._do(self._views.heard(uid, message)),
            met=self._met,
            lost=lambda uid, what, why: self._do(self._views.lost(uid, why, what)),
            say=self._tell.say,
            state=self._ways.trainer,
            round=self._ways.round,
        )
        self._loop.spawn(self._look_who_is_late())
        if self._ways.store is not None:
            self._clerk = Clerk(self._ways.store, self._told_by_store, self._tell.say)
        try:
            self._do(self._views.begin())
            if self._ways.lead is not None:
                self._control.adopt(*self._ways.lead)
            self._begun.set()
            while not self._closing:
                self._loop.turn()
            self._loop.run(self._control.farewell())
        finally:
            self._begun.set()
            if self._clerk is not None:
                self._clerk.close()
            self._control.close()
            self._loop.close()

    def _told_by_store(self, answer: Answer) -> None:
        self._loop.call(lambda: self._do(self._views.heard(STORE, answer)))

    def _met(self, uid: int, hello: Hello | None) -> None:
        self._do(self._views.met(uid) if hello is None else self._views.hello(hello))

    def _do(self, effects: list[Effect]) -> None:
        self.present, self.missing = self._views.present(), self._views.missing()
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(uid, message) if uid == STORE:
                if self._clerk is not None and isinstance(message, Prepare | Propose):
                    self._clerk.ask(message)
            case Send(uid, message):
                self._control.send(uid, message)
            case Dial(seat):
                self._control.dial(seat, lambda: self._views.greeting)
            case Drop(uid):
                self._control.drop(uid)
            case Knock():
                self._knock()
            case Timer(name, seconds):
                self._loop.sleep(seconds).then(lambda _: self._due(name))
            case Save(vote):
                if self._ways.folder is not None:
                    keep(self._ways.folder, self._views.seat.label, vote)
            case Install(view):
                self._tell.install(view)
                self._guard_doors()
            case _:
                self._pass_on(effect)

    def _pass_on(self, effect: Effect) -> None:
        match effect:
            case Freeze(number):
                self._tell.freeze(number)
            case Hold():
                self._tell.hold()
            case Out(why):
                self._tell.out(why)
            case Deny(why):
                self._tell.deny(why)
            case Over():
                self._tell.over()
            case Dismiss():
                self._tell.dismiss()
            case Say(text):
                self._tell.say(text)
            case Suspected(_, label, what, why):
                self._tell.event("suspect", peer=label, what=what, why=why)

    def _due(self, name: str) -> None:
        if not self._closing:
            self._do(self._views.timer(name))

    async def _look_who_is_late(self) -> None:
        """Where we lead."""
        laggards, view = Laggards(), self._views.view
        while not self._closing:
            await self._loop.sleep(_LOOK)
            if self._views.view is not view:
                laggards, view = Laggards(), self._views.view
            if view.leader != self._views.me:
                continue
            labels = {seat.uid: seat.label for seat in view.agents}
            rounds = {uid: round for uid, round in self._control.rounds().items() if uid in labels}
            for late in laggards.observe(time.monotonic(), rounds):
                self._tell.event("suspect", peer=labels[late.uid], what="slow", why=late.words)
                self._tell.say(f"agent {labels[late.uid]} is slow: {late.words}")

    # Where newcomers come in

    def _guard_doors(self) -> None:
        """Without a coordinator, whoever can listens at its address, and tells newcomers who leads."""
        if self._closing or self._views.view.founder is not None or not self._views.inside:
            return
        for address in self._ways.doors:
            host, port = places.split(address)
            if address not in self._guarded and places.is_here(host):
                try:
                    self._control.answer(listen(host, port))
                    self._guarded.add(address)
                except UsageError:
                    self._loop.sleep(_AGAIN).then(lambda _: self._guard_doors())
                    return

    def _knock(self) -> None:
        if not self._knocking and (self._ways.doors or self._ways.store):
            self._knocking = True
            threading.Thread(target=self._try_doors, name="stretto-knock", daemon=True).start()

    def _try_doors(self) -> None:
        door = Door(self._ways.secret, self._views.me, cache(make_certificate))
        for address in self._doors():
            try:
                sock, uid = reach(address, door, ANYONE, f"what listens at {address}")
            except (OSError, NetworkError):
                continue
            if uid != self._views.me and not self._closing:
                self._loop.call(lambda sock=sock, uid=uid: self._enter(uid, sock))  # type: ignore[misc]
                return
            sock.close()
        self._knocking = False

    def _doors(self) -> Sequence[str]:
        if self._ways.store is None:
            return self._ways.doors
        try:
            return doors(self._ways.store)
        except NetworkError:
            return ()

    def _enter(self, uid: int, sock: socket.socket) -> None:
        self._knocking = False
        if uid in self._control.connected():
            sock.close()
            return
        sock.sendall(encode(self._views.greeting))
        self._control.adopt(uid, sock)
