"""One simulated process of a run: its membership and its connections as they are, and how these reach its session.

Each speaks to the others through calls that arrive in order and a little later, as threads and processes do: whatever
one of them knows of another is a moment old.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stretto.core import FIRST_SERVER, Epoch, Link, Network
from stretto.links.loop import Waiter
from stretto.membership import View, Views, Vote
from stretto.membership.compose import named
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
    Save,
    Send,
    Timer,
)
from stretto.membership.messages import Hello, Report, Seat
from stretto.session import Attendant
from stretto.simulate.port import Port
from stretto.simulate.promises import Broken
from stretto.simulate.shown import shown
from stretto.simulate.trainer import Trainer

if TYPE_CHECKING:
    from stretto.simulate.world import World

LINGER = 1.0
"""Seconds that a process which leaves stays for the others."""


class Process(ABC):
    """``number``: of the view that its session is in.

    ``trainer``: only agents have one. ``healed``: it has the model. ``places``: what it applied (a place in the record)
    by round, since it was healed last.
    """

    def __init__(self, world: World, uid: int, label: int, vote: Vote | None) -> None:
        self.world, self.uid, self.label, self.vote = world, uid, label, vote
        self.alive, self.dark, self.stopped_until = True, False, 0.0
        self.views: Views | None = None
        self.trainer: Trainer | None = None
        self.number = 0
        self.out = self.healed = False
        self.places: dict[int, str] = {}
        self.tries = 0
        self.sent = 0
        self.port = Port(self, world.exchanges, world.slow, self._lost)
        self._left: dict[int, str] = {}
        self._last = [0.0, 0.0, 0.0]

    def __str__(self) -> str:
        return f"{named(self.label)} ({self.uid})"

    @property
    def serves(self) -> bool:
        return self.label >= FIRST_SERVER

    @property
    def trains(self) -> bool:
        return 0 <= self.label < FIRST_SERVER

    @property
    def seat(self) -> Seat:
        host = f"host{self.label % FIRST_SERVER // 2}"
        return Seat(self.uid, self.label, host, self.uid, (), (f"at:{self.uid}",), True, self.serves)

    @property
    def first_word(self) -> Hello:
        return self.views.greeting if self.views is not None else Hello(self.seat, self.world.size, 0, self.vote)

    @property
    def finished(self) -> bool:
        return self.trainer is not None and self.trainer.ended

    @property
    @abstractmethod
    def session(self) -> Attendant: ...

    @abstractmethod
    def leave_soon(self) -> None:
        """It is asked to leave."""

    @abstractmethod
    def dismissed(self) -> None:
        """All agents have left."""

    # The beginning and the end

    def enter_run(self, view: View, head: int) -> None:
        """Whoever let us in told us of ``view``."""
        self.label = next((seat.label for seat in view.seats if seat.uid == self.uid), self.label)
        self.views = Views.agent(self.seat, view, head, size=self.world.size, vote=self.vote)
        self.begin(view)

    @abstractmethod
    def begin(self, view: View) -> None:
        """The run is as in ``view``: what are we there for?"""

    def leave(self) -> None:
        self.world.promises.leavers.add(self.uid)
        self.tell("leave")
        self.port.close()
        self.world.clock.after(LINGER * self.world.random.random(), self, lambda: self.world.end(self))
        self.world.look()

    # Between membership, session and trainer

    def later(self, way: int, call: Callable[[], object]) -> None:
        """In the order of calls on each of the three ways: mostly at once, else some milliseconds later."""
        late = 0.02 * max(0.0, self.world.random.random() - 0.75)
        self._last[way] = time = max(self._last[way], self.world.clock.now + late)
        self.world.clock.at(time, self, call)

    def to_session(self, name: str, *what: Any) -> None:
        """From the trainer, or from the membership."""
        self.later(0, lambda: getattr(self.session, name)(*what))

    def tell(self, name: str, *what: Any) -> None:
        """An event for the membership."""
        self.later(1, lambda: self.happen(name, *what))

    def sleep(self, seconds: float) -> Waiter:
        return self.world.clock.sleep(seconds, self)

    # Membership: events and effects

    def happen(self, name: str, *what: Any) -> None:
        """An event at the membership, now."""
        if self.views is None or not self.alive:
            return
        if self.world.log is not None:
            self.world.say(f"{self} <- {name} {shown(what)}")
        self.do(getattr(self.views, name)(*what))

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if self.world.log is not None and not isinstance(effect, Timer | Save):
                self.world.say(f"{self} -> {type(effect).__name__} {shown(effect)}")
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        world = self.world
        match effect:
            case Send(uid, message):
                world.control.send(self, uid, message)
            case Dial(seat):
                world.control.connect(self, seat.uid)
            case Knock():
                world.control.knock(self)
            case Drop(uid):
                world.control.hang_up(self, uid)
            case Timer(name, seconds):
                world.clock.after(seconds, self, partial(self.happen, "timer", name))
            case Save(vote):
                world.save(self, vote)
            case Deny(why):
                world.deny(self, why)
            case _:
                self._pass_on(effect)

    def _pass_on(self, effect: Effect) -> None:
        """What is for the courier."""
        match effect:
            case Freeze(number):
                self.later(0, partial(self._freeze, number))
            case Hold():
                self.to_session("hold")
            case Install(view):
                self.later(0, partial(self.install, view))
            case Out():
                self.later(0, self.go_out)
            case Dismiss():
                self.later(0, self.dismissed)

    def _freeze(self, number: int) -> None:
        if self.number != number:
            raise Broken(f"{self} is to freeze view {number}, and is in view {self.number}")
        report = self.session.freeze()
        self.world.promises.note_report(number, report)
        self.tell("frozen", number, report)

    def install(self, view: View) -> None:
        self.world.promises.check_install(self, view)
        self.number, self.out = view.number, False
        self.session.install(view)

    def go_out(self) -> None:
        self.out, self.healed = True, False
        self.places.clear()
        self.world.copies.gone(self.uid)
        self.session.out()

    def _lost(self, uid: int, why: str) -> None:
        """Who has left with a goodbye is missed only when an exchange needs it, as the courier has it."""
        if uid in self.world.promises.leavers:
            self._left[uid] = why
        elif not self.finished:
            self.tell("suspect", uid, why)

    # What the session is given (stretto.session.Surroundings)

    def link(self, exchange: int, *, whole: bool = False) -> Link:
        return self.port.link(exchange, whole=whole)

    def forget(self, exchange: int) -> None:
        self.port.forget(exchange)

    def spawn(
        self, coroutine: Coroutine[Any, Any, Any], ended: Callable[[Any, BaseException | None], None]
    ) -> Callable[[], None]:
        task = self.world.clock.spawn(coroutine)
        task.then(lambda waiter: ended(waiter.value, waiter.error))
        return task.cancel

    def enter(self, epoch: Epoch, rank: int) -> None:
        if self.trainer is not None:
            self.trainer.held = False
        self.port.enter(epoch, rank)

    def part(self) -> None:
        """Lines between agents are lost with these."""
        return

    def abandon(self) -> None:
        self.port.abandon()

    def cpu(self) -> float:
        return 0.0

    def measured(self, network: Network) -> None:
        self.port.network = network

    def ready(self, brought: str) -> None:
        self.tell("ready", brought)

    def at_fence(self, round: int) -> None:
        self.tell("fence", round)

    def report_again(self, report: Report) -> None:
        self.world.promises.note_report(self.number, report)
        self.tell("frozen", self.number, report)

    def missed(self, peer: int) -> None:
        uid = self.port.uids[peer] if peer >= 0 else 0
        if uid in self._left and not self.finished:
            self.tell("suspect", uid, self._left[uid])

    def hold(self) -> None:
        """Our trainers order everything, so the session alone can hold them; but they tell each other."""
        if self.trainer is not None:
            self.trainer.held = True

    def direct(self) -> None:
        """Our trainers order everything."""
        return

    def direct_results(self, round: int) -> dict[int, Tensor]:
        return {}

    def lend(self, x: Tensor) -> Tensor | None:
        """Nobody shares memory."""
        return None

    def borrow(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        raise Broken("somebody lends memory that nobody shares")

    def event(self, name: str, **fields: Any) -> None:
        if name in {"slots", "slot"}:
            self.world.copies.found(self.port.epoch, self.uid, fields["held"], fields.get("of", 0))
        if self.world.log is not None:
            self.world.say(f"{self} session: {name} {fields}")
