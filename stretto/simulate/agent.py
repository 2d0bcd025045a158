"""One simulated process: membership, session and trainer as they are, what runs between them, and its connections.

Of the three, each speaks to the others through calls that arrive in order and a little later, as threads and processes
do: whatever one of them knows of another is a moment old.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stretto.core import Epoch, Link, Network
from stretto.errors import RunLost, StrettoError
from stretto.links.loop import Waiter
from stretto.membership import View, Views, Vote
from stretto.membership.effects import (
    Deny,
    Dial,
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
from stretto.membership.messages import FOUNDER, Hello, Report, Seat
from stretto.server.value import Server
from stretto.session import Closing, Session
from stretto.simulate.delayed import Delayed
from stretto.simulate.drifts import Drifts
from stretto.simulate.gradients import Gradients
from stretto.simulate.port import Port
from stretto.simulate.promises import Broken, check_step
from stretto.simulate.pushing import Pushers
from stretto.simulate.shown import shown
from stretto.simulate.trainer import BUCKETS, NUMBERS, Trainer
from stretto.simulate.watched import watching
from stretto.strategies import allreduce

if TYPE_CHECKING:
    from stretto.simulate.world import World

LINGER = 1.0
"""Seconds that an agent which leaves stays for the others."""


class Agent:
    """An agent's process, or the coordinator's. ``number``: of the view that its session is in; ``healed``: so is it.

    ``places``: what it applied (a place in the record) by round, since it was healed last.
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
        self._session = Session(uid, self, self, watching(world.history))
        self._left: dict[int, str] = {}
        self._last = [0.0, 0.0, 0.0]

    def __str__(self) -> str:
        return f"{'the coordinator' if self.label == FOUNDER else f'agent {self.label}'} ({self.uid})"

    @property
    def seat(self) -> Seat:
        return Seat(self.uid, self.label, f"host{self.label // 2}", self.uid, (), (f"at:{self.uid}",), True)

    @property
    def first_word(self) -> Hello:
        return self.views.greeting if self.views is not None else Hello(self.seat, self.world.size, 0, self.vote)

    @property
    def finished(self) -> bool:
        return self.trainer is not None and self.trainer.ended

    # The beginning and the end

    def found(self, size: int) -> None:
        """Be the coordinator."""
        self.views = Views.founder(self.seat, size, Network())
        self.do(self.views.begin())

    def enter_run(self, view: View, head: int) -> None:
        """Whoever let us in told us of ``view``: begin to train."""
        label = next((seat.label for seat in view.seats if seat.uid == self.uid), self.label)
        self.label = label
        self.views = Views.agent(self.seat, view, head, size=self.world.size, vote=self.vote)
        uids = tuple(seat.uid for seat in view.seats)
        strategy = self.world.strategy
        kind: type[Trainer]
        steady = Delayed if strategy.landing.behind else Gradients
        kind = Drifts if strategy.signal == "drift" else steady
        if isinstance(strategy.exchange, Server):
            kind = Pushers
        self.trainer = kind(
            self, self.world.strategy, self.world.job, self.world.record, uids, self.uid, self.world.pace
        )
        held = isinstance(strategy.exchange, Server)
        self._session.use(BUCKETS, allreduce() if held else strategy, self.trainer.layouts)
        self._session.use(NUMBERS, allreduce())
        if self.uid in uids:
            self._install(view)
        self.do(self.views.begin())
        self.world.clock.spawn(self.trainer.train()).then(self._trained)

    def _trained(self, waiter: Waiter) -> None:
        if waiter.error is not None:
            raise waiter.error
        self._later(0, self._leave)

    def _leave(self) -> None:
        self.world.promises.leavers.add(self.uid)
        self.tell("leave")
        self.port.close()
        self.world.clock.after(LINGER * self.world.random.random(), self, lambda: self.world.end(self))
        self.world.look()

    # Between membership, session and trainer

    def _later(self, way: int, call: Callable[[], object]) -> None:
        """In the order of calls on each of the three ways: mostly at once, else some milliseconds later."""
        late = 0.02 * max(0.0, self.world.random.random() - 0.75)
        self._last[way] = time = max(self._last[way], self.world.clock.now + late)
        self.world.clock.at(time, self, call)

    def to_session(self, name: str, *what: Any) -> None:
        """From the trainer, or from the membership."""
        self._later(0, lambda: getattr(self._session, name)(*what))

    def tell(self, name: str, *what: Any) -> None:
        """An event for the membership."""
        self._later(1, lambda: self.happen(name, *what))

    def _to_trainer(self, name: str, *what: Any) -> None:
        trainer = self.trainer
        assert trainer is not None
        self._later(2, lambda: trainer.hear(name, *what))

    def sleep(self, seconds: float) -> Waiter:
        return self.world.clock.sleep(seconds, self)

    def stepped(self, round: int, place: str) -> None:
        self.places[round] = place
        check_step(self, round, self.world.agents)

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
                self._later(0, partial(self._freeze, number))
            case Hold():
                self.to_session("hold")
            case Install(view):
                self._later(0, partial(self._install, view))
            case Out():
                self._later(0, self._go_out)

    def _freeze(self, number: int) -> None:
        if self.number != number:
            raise Broken(f"{self} is to freeze view {number}, and is in view {self.number}")
        report = self._session.freeze()
        self.world.promises.note_report(number, report)
        self.tell("frozen", number, report)

    def _install(self, view: View) -> None:
        self.world.promises.check_install(self, view)
        self.number, self.out = view.number, False
        self.healed = next(seat.healed for seat in view.seats if seat.uid == self.uid)
        self._session.install(view)

    def _go_out(self) -> None:
        self.out, self.healed = True, False
        self.places.clear()
        self.world.copies.gone(self.uid)
        self._session.out()

    def _lost(self, uid: int, why: str) -> None:
        """Who has left with a goodbye is missed only when an exchange needs it, as the courier has it."""
        if uid in self.world.promises.leavers:
            self._left[uid] = why
        elif not self.finished:
            self.tell("suspect", uid, why)

    # What the session is given (stretto.session.Surroundings)

    def link(self, exchange: int) -> Link:
        return self.port.link(exchange)

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

    def direct_results(self, round: int) -> dict[int, Tensor]:
        return {}

    def event(self, name: str, **fields: Any) -> None:
        self.healed |= name == "healed"
        if name in {"slots", "slot"}:
            self.world.copies.found(self.port.epoch, self.uid, fields["held"])
        if self.world.log is not None:
            self.world.say(f"{self} session: {name} {fields}")

    # What it tells the trainer (stretto.session.Trainer)

    def done(self, number: int, closing: Closing | None) -> None:
        self._to_trainer("done", number, closing)

    def failed(self, number: int, error: StrettoError) -> None:
        if isinstance(error, RunLost):
            self.world.lose(self, error)
        else:
            self._to_trainer("failed", number, error)

    def donate(self) -> None:
        self._to_trainer("donate")

    def make_room(self, nbytes: int) -> None:
        self._to_trainer("make_room", nbytes)

    def heal(self) -> None:
        self._to_trainer("heal")
