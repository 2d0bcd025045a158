"""An agent's membership, beside its courier: told in a thread of its own, asked from any."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stretto.membership.control import process_state
from stretto.membership.driver import Driver, Tell, Ways
from stretto.membership.keeping import kept
from stretto.membership.messages import Report, Seat, View
from stretto.membership.stores.store import Store
from stretto.membership.views import Views


class Runner:
    """Keeps an agent in the run. The callbacks are called in its own thread, and must not wait.

    Args:
        view: where we stand: one that we are in, or, for a newcomer, the one that the others are in.
        lead: the control connection that :func:`~stretto.membership.entry.enter` made, blocking and proven.
        head: who is at its other end; 0: the leader of ``view``.
        listener: where the others' control connections come in.
        doors: addresses where newcomers come in.
        min_agents: go on with as few when there is no majority.
        state: folder where votes outlive the process.
        trainer: process that trains.
        round: the latest round that it has begun.
        store: of views, where the coordinator has one; opened after the fork.
        freeze: ``freeze(number)``: end all exchanges of that view, then call :meth:`frozen`.
        hold: at the next fence round wait, and call :meth:`fence`, until the next view.
        install: ``install(view)``: we are in this view now.
        out: ``out(why)``: the others went on without us; call :meth:`ready` at the next fence to come back.
        deny: ``deny(why)``: the run refuses us.
        dismiss: we serve, and all agents have left.
        event: ``event(kind, **fields)`` of the trace.
    """

    def __init__(
        self,
        seat: Seat,
        secret: str,
        *,
        view: View,
        lead: socket.socket,
        listener: socket.socket,
        freeze: Callable[[int], object],
        hold: Callable[[], object],
        install: Callable[[View], object],
        out: Callable[[str], object],
        deny: Callable[[str], object],
        say: Callable[[str], object],
        event: Callable[..., object],
        dismiss: Callable[[], object] = lambda: None,
        head: int = 0,
        doors: Sequence[str] = (),
        min_agents: int | None = None,
        state: Path | None = None,
        trainer: int = 0,
        round: Callable[[], int] = lambda: 0,
        store: Store | None = None,
    ) -> None:
        head = head or view.leader
        vote = kept(state, seat.label)
        inside = any(other.uid == seat.uid for other in view.seats)
        views = Views.agent(seat, view, head, vote=None if inside else vote, min_agents=min_agents)
        trains: Callable[[], str] = (lambda: process_state(trainer)) if trainer else (lambda: "R")
        ways = Ways(secret, (listener,), (head, lead), doors, state, trains, round, store)
        tell = Tell(
            freeze=freeze, hold=hold, install=install, out=out, deny=deny, dismiss=dismiss, say=say, event=event
        )
        self._driver = Driver(views, ways, tell, "stretto-membership")

    def start(self) -> None:
        self._driver.start()

    def close(self) -> None:
        """Let what was said arrive, a second at most, and end. May be called again."""
        self._driver.close()

    def ready(self, brought: str) -> None:
        """Newcomer: our first fence is reached; ``brought`` digests what we train."""
        self._tell("ready", brought)

    def fence(self, round: int) -> None:
        """We were told to hold, and do so at this fence round."""
        self._tell("fence", round)

    def suspect(self, uid: int, why: str) -> None:
        """We lost this member while exchanging with it."""
        self._tell("suspect", uid, why)

    def frozen(self, number: int, report: Report) -> None:
        """All exchanges of view ``number`` have ended, and this is how far we came."""
        self._tell("frozen", number, report)

    def leave(self) -> None:
        """We have finished, and all is well."""
        self._tell("leave")

    def _tell(self, kind: str, *what: Any) -> None:
        self._driver.event(kind, *what)
