"""A simulated agent: session and trainer as they are, in a process of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stretto.core import Network
from stretto.errors import RunLost, StrettoError
from stretto.links.loop import Waiter
from stretto.membership import View, Views, Vote
from stretto.server.value import Server
from stretto.session import Closing, Session
from stretto.simulate.delayed import Delayed
from stretto.simulate.drifts import Drifts
from stretto.simulate.gradients import Gradients
from stretto.simulate.process import Process
from stretto.simulate.promises import check_step
from stretto.simulate.pushing import Pushers
from stretto.simulate.trainer import BUCKETS, NUMBERS, Trainer
from stretto.simulate.watched import watching
from stretto.strategies import allreduce

if TYPE_CHECKING:
    from stretto.simulate.world import World


class Agent(Process):
    """An agent's process, or the coordinator's."""

    def __init__(self, world: World, uid: int, label: int, vote: Vote | None) -> None:
        super().__init__(world, uid, label, vote)
        self._session = Session(uid, self, self, watching(world.history))

    @property
    def session(self) -> Session:
        return self._session

    def found(self, size: int, servers: int) -> None:
        """Be the coordinator."""
        self.views = Views.founder(self.seat, size, Network(), servers=servers)
        self.do(self.views.begin())

    def begin(self, view: View) -> None:
        """Train."""
        assert self.views is not None
        uids = tuple(seat.uid for seat in view.agents)
        strategy = self.world.strategy
        held = isinstance(strategy.exchange, Server)
        steady = Delayed if strategy.landing.behind else Gradients
        kind: type[Trainer] = Pushers if held else Drifts if strategy.signal == "drift" else steady
        self.trainer = kind(self, strategy, self.world.job, self.world.record, uids, self.uid, self.world.pace)
        self._session.use(BUCKETS, allreduce() if held else strategy, self.trainer.layouts)
        self._session.use(NUMBERS, allreduce())
        if self.uid in uids:
            self.install(view)
        self.do(self.views.begin())
        self.world.clock.spawn(self.trainer.train()).then(self._trained)

    def _trained(self, waiter: Waiter) -> None:
        if waiter.error is not None:
            raise waiter.error
        self.later(0, self.leave)

    def leave_soon(self) -> None:
        if self.trainer is not None:
            self.trainer.leaving = True

    def dismissed(self) -> None:
        raise AssertionError(f"{self} trains, and is told to go")

    def install(self, view: View) -> None:
        self.healed = next(seat.healed for seat in view.seats if seat.uid == self.uid)
        super().install(view)

    def stepped(self, round: int, place: str) -> None:
        self.places[round] = place
        check_step(self, round, self.world.agents)

    def event(self, name: str, **fields: Any) -> None:
        self.healed |= name == "healed"
        super().event(name, **fields)

    # What it tells the trainer (stretto.session.Trainer)

    def done(self, number: int, closing: Closing | None) -> None:
        self._tell_trainer("done", number, closing)

    def failed(self, number: int, error: StrettoError) -> None:
        if isinstance(error, RunLost):
            self.world.lose(self, error)
        else:
            self._tell_trainer("failed", number, error)

    def donate(self) -> None:
        self._tell_trainer("donate")

    def make_room(self, nbytes: int) -> None:
        self._tell_trainer("make_room", nbytes)

    def heal(self) -> None:
        self._tell_trainer("heal")

    def _tell_trainer(self, name: str, *what: Any) -> None:
        trainer = self.trainer
        assert trainer is not None
        self.later(2, lambda: trainer.hear(name, *what))
