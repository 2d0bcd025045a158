"""The agent: what a user's script holds. Joins models and data to a courier, and goes when the script goes.

agent = stretto.join()
model, optimizer = agent.prepare(model, optimizer, strategy="allreduce")
for x, y in agent.shard(dataset, batch_size=64, epochs=5):
    ...
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stretto import state, strategies
from stretto.buckets import BufferRule
from stretto.checkpoint import Keep
from stretto.core import Epoch, Member, Network, Strategy
from stretto.courier import Courier, Place
from stretto.data import Leased, Shard
from stretto.errors import Diverged, UsageError
from stretto.groups import Groups
from stretto.holdings import Holdings
from stretto.keeping import Keeping
from stretto.ledger import shares_of
from stretto.pace import Pace
from stretto.preparing import check, check_names, check_native, describe, spread
from stretto.pushing import Pushing
from stretto.report import Report
from stretto.saving import EVERY, Saver
from stretto.server import Server
from stretto.server.stock import Known, Terms
from stretto.session import Closing, epoch_of
from stretto.text import coerce
from stretto.trace import Trace
from stretto.wire import finish

T = TypeVar("T")
_NUMBERS = -1
_FINEST = 16
"""The fastest agent's share: finer differences of speed than a sixteenth are taken for noise."""
_MODELS: Final = "the models given to prepare()"


@dataclass(frozen=True, slots=True)
class Meeting:
    """What all do together whenever ``every`` more samples are trained; 0: never."""

    every: int = 0
    do: Callable[[], object] = lambda: None

    def between(self, before: int, after: int) -> None:
        """So many samples were trained at the last fence, and are at this."""
        if self.every and after // self.every > before // self.every:
            self.do()


class Agent:
    """One agent of a run; alone when ``place`` is None.

    Made by :func:`stretto.join`. A context manager; it also leaves by itself when the process ends.

    Attributes:
        label: its number in the launch, which a restart keeps.
        rank, size, epoch: which of how many it is now, and who the others are. They change, between two steps, when
            agents come and go; while it waits to be let in it counts as a member.
    """

    def __init__(
        self, place: Place | None = None, *, saver: Saver | None = None, left: Callable[[], None] = lambda: None
    ) -> None:
        """``left()`` is called when it has left."""
        self._left = left
        self._holds = Holdings()
        self.link = place.link if place else "none"
        self.label = place.seat.label if place else 0
        self.epoch = epoch_of(place.view).agents if place else Epoch(0, (Member(0, "here", 0, ()),))
        uid = place.seat.uid if place else self.epoch.uids[0]
        self.rank = self.epoch.uids.index(uid) if uid in self.epoch.uids else 0
        self.size = self.epoch.size
        self._servers = len(place.view.seats) - self.size if place else 0
        self.trace = Trace(place.trace if place else None, self.label)
        self.trace.event("join", epoch=self.epoch.number, agents=self.size, hosts=self.epoch.hosts, link=self.link)
        self._courier = Courier(place) if place else None
        self._keeping = Keeping(
            saver, self._holds, self._courier, self.label, lambda: (self.epoch, self.rank), self.trace, _say
        )
        late = place is not None and uid not in self.epoch.uids
        self._groups = Groups(self, self._courier, self._holds, late=late)
        self._paces: dict[int, Pace] = {}
        self._met = Meeting()
        self._staleness: dict[int, int] = {}
        self._begin = time.monotonic()
        if self._courier is not None:
            self._courier.keep(self)
            self._courier.use(_NUMBERS, str(strategies.allreduce()), native=self._courier.apart)
            atexit.register(self._at_exit)
            self._settle_in()

    def prepare(self, *objects: Any, strategy: Strategy | str = "allreduce", buffers: BufferRule = "mean") -> Any:
        """Give models and optimizers to the agent; the same objects come back, in the same order.

        With a strategy that exchanges gradients ``backward()`` ends with their mean over all agents from here on; with
        the others the optimizer's step ends with what is due. The first agent's weights go to everybody, and all
        compare what they were given. Whoever comes later is given the state of all of these.

        Args:
            objects: ``nn.Module`` s, ``Optimizer`` s, and whatever else has a state that must be the same everywhere
                (schedulers, scalers). One object comes back as itself, several as a tuple.
            strategy: how agents agree; a value or its text.
            buffers: what floating-point buffers (batch norm's statistics) become after each step: the ``"mean"`` over
                agents, the first agent's (``"broadcast"``), or nothing (``"local"``).

        Raises:
            Disagreement: agents were given different models or strategies; says whose, and where they differ.
            UsageError: something here cannot be exchanged as asked.
        """
        models = [o for o in objects if isinstance(o, nn.Module)]
        optimizers = [o for o in objects if isinstance(o, Optimizer)]
        chosen: Strategy = coerce(strategy, "strategy")
        check(objects, buffers, prepared=self._holds.models)
        check_native(chosen, self.link, self.size)
        check_names(chosen, models)
        if self._servers and self.rank == 0 and not isinstance(chosen.exchange, Server):
            _say(
                f"{chosen} has no use for the run's servers ({self._servers}); use bsp(), ssp(4) or asp(), or leave "
                "them out"
            )
        self._holds.models += models
        if self._courier is not None:
            self._courier.agree(_MODELS, describe(models, optimizers, chosen, buffers), brings=True)
            self._holds.network = self._courier.measure()
            spread(models, self._courier.scratch, self._courier.broadcast)
            self._courier.agree("the weights after the first agent sent its own", self.digest())
        others = [o for o in objects if not isinstance(o, nn.Module)]
        self._holds.stateful += others
        self._groups.add(chosen, models, others, buffers)
        self.trace.event("prepare", strategy=str(chosen), buffers=buffers, digest=self.digest())
        return objects[0] if len(objects) == 1 else objects

    def shard(
        self,
        dataset: Any,
        batch_size: int,
        epochs: int = 1,
        seed: int = 0,
        *,
        workers: int = 0,
        shuffle: bool = True,
        balance: bool = False,
        meet: int = 0,
        on_meet: Callable[[], object] = lambda: None,
    ) -> Shard | Leased:
        """This agent's batches of ``dataset``: every sample once an epoch over all agents; see :mod:`stretto.data`.

        ``batch_size`` is one agent's. Where agents' batches differ in size, gradients are weighted so that their mean
        is the exact mean over samples. Who comes and goes meanwhile changes who trains what, and nothing else.

        Args:
            balance: from the second epoch on, and after each epoch anew, give faster agents more of each step's
                samples, in proportion to the speed that all have measured of themselves. (Who gets what then depends on
                the clock, so two runs are no longer the same to the bit.)
            meet, on_meet: with servers, where agents are not in step, all stop whenever so many samples more are
                trained, have the same values, and call ``on_meet()``, in which :meth:`mean` may be called. (With other
                strategies all are in step at any time, and it is not called.)

        Raises:
            UsageError: fewer samples than agents, or no dataset.
        """

        if self._groups.pushing is not None:
            if balance:
                raise UsageError("with servers who is faster is dealt more in any case: leave balance out")
            self._met = Meeting(meet, on_meet)
            return self._leased(self._groups.pushing, dataset, batch_size, epochs, seed, workers, shuffle)
        pace = Pace() if balance and self._courier is not None else None

        def drawn(share: float) -> None:
            self._groups.drew()
            self.weigh(share)
            if pace is not None and self._courier is not None:
                pace.drawn(share, self._courier.waited)

        def draw(end: bool) -> None:
            if self._holds.loose is not None:
                self.finish(self._holds.loose.draw(end))
            self._keeping.save_if_due()

        shard = Shard(
            dataset,
            batch_size,
            epochs=epochs,
            seed=seed,
            rank=self.rank,
            size=self.size,
            workers=workers,
            shuffle=shuffle,
            on_batch=drawn,
            on_begin=self._keeping.begin,
            on_draw=draw,
            fenced=self._courier is not None or self._holds.loose is not None,
            members=self.epoch.uids,
        )
        self._holds.shards.append(shard)
        if pace is not None:
            self._paces[id(shard)] = pace
        self._groups.dealt()
        return shard

    def _leased(
        self,
        pushing: Pushing,
        dataset: Any,
        batch_size: int,
        epochs: int,
        seed: int,
        workers: int,
        shuffle: bool,
    ) -> Leased:
        """Batches by demand."""

        def begin() -> None:
            self._keeping.begin()
            terms = Terms(shard.ledger, batch_size, epochs, self._met.every)
            self.finish(pushing.deal(msgspec.json.encode(terms), batch_size))

        shard = Leased(
            dataset,
            batch_size,
            lambda ahead: self.finish(pushing.next(ahead)),
            give_back=lambda number: self.finish(pushing.give_back(number)),
            epochs=epochs,
            rank=self.rank,
            size=self.size,
            seed=seed,
            workers=workers,
            shuffle=shuffle,
            on_batch=lambda share: pushing.hand_out(shard.lease, share),
            on_begin=begin,
            on_draw=lambda end: self._keeping.save_if_due(),
        )
        self._holds.shards.append(shard)
        return shard

    def checkpoint(self, place: str, every: float = EVERY, keep: Keep = Keep()) -> bool:  # noqa: B008
        """Save the run at ``place`` every so many seconds, and go on from the newest checkpoint that is there.

        Call it after ``prepare()`` and ``shard()``, before the first batch. All that was prepared is saved, with the
        samples that are trained, and each agent's random generators. With as many agents as then, the run goes on bit
        for bit; with another number the samples go on where they were, dealt to these.

        Args:
            place: a folder, or a URL that fsspec knows (``"s3://bucket/run"``).

        Returns:
            Whether there was a checkpoint.

        Raises:
            DataError: this agent cannot write there, or what is there is another model's.
        """
        return self._keeping.at(place, every, keep)

    def weigh(self, share: float) -> None:
        """Let the gradients of the next backward count ``share`` times (1 is an equal part). ``shard`` calls it."""
        self._groups.weigh(share)

    def accumulate(self) -> AbstractContextManager[None]:
        """Inside, ``backward()`` only adds gradients up; the next one outside exchanges the sum."""
        return self._groups.accumulate()

    def mean(self, value: float) -> float:
        """The mean of ``value`` over agents, the same bits everywhere. All agents call it, between the same two steps.

        A newcomer's own ``value``, as long as it has not been let in.

        Raises:
            UsageError: each agent goes at its own pace now.
        """
        if self._courier is None:
            return value
        if self._groups.pushing is not None and self._groups.pushing.apart:
            raise UsageError(
                "mean() is for all agents at the same step, and with this strategy each goes at its own pace: call it "
                "when all batches are trained, or after synchronise()"
            )
        self._collect()
        x, mean = self._courier.scratch[:128].view(torch.float64).view(2, 8)[:, :1]
        x[0] = value
        closing = self._courier.mean(_NUMBERS, x, mean)()
        if closing is not None:
            self.moved(closing)
        return float(mean[0])

    @property
    def steps(self) -> int:
        """Steps of the run, trained by whomever."""
        return self._holds.steps

    @property
    def network(self) -> Network:
        """What the network between the agents was like when they began."""
        return self._holds.network

    def digest(self) -> str:
        """A hash of all prepared models' parameters and buffers: equal digests are equal bits."""
        return self._holds.digest()

    def report(self) -> Report:
        """Bytes and seconds so far."""
        seconds = time.monotonic() - self._begin
        if self._courier is None:
            return Report(0, 0, 0, 0, 0, 0.0, seconds, 0.0, 0.0, 0, 0, {})
        c = self._courier.counted()
        return Report(
            c.sent,
            c.received,
            c.wire_sent,
            c.wire_received,
            c.connections,
            self._courier.waited,
            seconds,
            c.cpu_seconds,
            c.codec_seconds,
            c.dense,
            c.coded,
            self._staleness,
        )

    # What others need of us, and give us

    def snapshot(self, room: Callable[[int], Tensor]) -> Tensor:
        """All that a newcomer needs to go on as we do, as it is between two steps."""
        return state.pack(self._keeping.tree(), room)

    def take_over(self, memory: Tensor) -> None:
        """Become what another agent's snapshot says."""
        tree = state.unpack(memory.clone())  # what loads it may keep views, and the memory is used again
        self._holds.become(tree, join=True)
        self._keeping.join(tree["run"])

    # What those who exchange for us ask and tell

    @property
    def drawn(self) -> int | None:
        """Batches that all have drawn so far; None where nothing is dealt."""
        return self._holds.drawn

    @property
    def ends(self) -> bool:
        """Was the batch drawn last the last one, as far as one knows?"""
        return bool(self._holds.shards) and self._holds.shards[0].ends

    @property
    def members(self) -> tuple[int, ...]:
        return self.epoch.uids

    def wishes(self) -> bool:
        """Is it time for a checkpoint?"""
        return self._keeping.due

    def trained(self, closing: Closing, *, save: bool, but: int) -> None:
        """An agreement has ended: what was drawn before is trained by those who took part, but the last batches."""
        if closing.alone:
            return
        if save:
            self._keeping.wish()
        drawn = self._holds.drawn
        self._commit(closing, steps=1 if drawn is None else drawn - but - self._holds.steps, but=but)

    @property
    def saves(self) -> bool:
        """Are checkpoints written?"""
        return self._keeping.saves

    def stood(self, closing: Closing, known: bytes, *, save: bool) -> None:
        """All have stopped at a fence; this is trained."""
        if save:
            self._keeping.wish()
        told = msgspec.json.decode(known, type=Known)
        self._staleness = told.staleness
        before = after = 0
        for shard in self._holds.shards[:1]:
            assert isinstance(shard, Leased) and told.ledger is not None
            before, after = shard.ledger.trained, told.ledger.trained
            shard.stand(told.ledger)
            self._holds.steps = told.ledger.steps
        self.moved(closing)
        self._met.between(before, after)

    def closed(self, closing: Closing, *, save: bool, fence: bool) -> None:
        """A backward's round has ended; ``fence``: the first since a batch was drawn."""
        if closing.alone:
            return
        if save:
            self._keeping.wish()
        if fence:
            self._commit(closing, steps=1, but=0)
        else:
            self.moved(closing)

    def _commit(self, closing: Closing, *, steps: int, but: int) -> None:
        holds = self._holds
        before = [shard.ledger.epoch for shard in holds.shards]
        holds.steps += steps
        dealt = [shard for shard in holds.shards if isinstance(shard, Shard)]
        for shard in dealt:
            shard.committed(closing.contributors, but=but if shard is dealt[0] else 0)
        self.moved(closing)
        for shard, epoch in zip(dealt, before, strict=True):
            if shard.ledger.epoch > epoch and id(shard) in self._paces:
                self._balance(shard, self._paces[id(shard)])

    def _balance(self, shard: Shard, pace: Pace) -> None:
        """An epoch has ended: compare speeds, and deal the next one by them."""
        assert self._courier is not None
        x, mean = self._courier.scratch[: 16 * self.size].view(torch.float64).view(2, self.size)
        x.zero_()
        x[self.rank] = pace.speed * self.size
        closing = self._courier.mean(_NUMBERS, x, mean)()
        if closing is not None and closing.epoch is not None:
            self.moved(closing)  # other members: equal shares until the next epoch
            return
        shares = shares_of(mean.tolist(), _FINEST)
        shard.enter(None, self.rank, self.size, shares, members=self.epoch.uids)
        self.trace.event("shares", shares=shares)

    def moved(self, closing: Closing) -> None:
        """A round has ended, and maybe an epoch with it: then who is with us, and who trains what, changes now."""
        if closing.epoch is None:
            return
        self.epoch, self.rank, self.size = closing.epoch, closing.rank, closing.epoch.size
        for shard in self._holds.shards:
            shard.enter(None, self.rank, self.size, members=self.epoch.uids)
        self._settle_in()

    def synchronise(self) -> None:
        """Exchange now what the strategy would exchange later. All agents call it, after the same batch."""
        if self._holds.loose is not None:
            self.finish(self._holds.loose.synchronise())

    def _collect(self) -> None:
        """One round at a time: what is under way first."""
        if self._holds.loose is not None:
            self.finish(self._holds.loose.collect())

    def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run what is due beside training.

        Raises:
            Diverged: weights are not finite; says where to begin again.
        """
        try:
            return finish(work)
        except Diverged as e:
            raise self._keeping.diverged(e) from None

    def _settle_in(self) -> None:
        """All members of an epoch do this first."""
        assert self._courier is not None
        closing = self._courier.settle_in(self.epoch, self.rank)
        if closing is not None:
            self.moved(closing)

    def leave(self) -> None:
        """Go, having done one's part; the others are told. Done by itself when the process ends."""
        self._go(None)

    def _at_exit(self) -> None:
        self._go(getattr(sys, "last_value", None))

    def _go(self, error: BaseException | None) -> None:
        """Where training has diverged all end alike: nobody is lost, and the others are to hear it too."""
        failed = error is not None
        self._keeping.close(failed=failed)
        if self._courier is not None:
            self.trace.event("leave", failed=failed, waited=self._courier.waited)
            self.trace.close()
            self._courier.close(failed=failed and not isinstance(error, Diverged))
            self._courier = None
            atexit.unregister(self._at_exit)
            self._left()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._go(error)


def _say(text: str) -> None:
    print(f"stretto: {text}", file=sys.stderr, flush=True)
