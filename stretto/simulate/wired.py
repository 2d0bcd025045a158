"""A simulated agent that exchanges beside its training: the real machines of :mod:`stretto`, on a wire in virtual time.

It draws from the real :class:`stretto.data.Shard`, and the wire (:class:`stretto.notices.Wire`) is the trainer itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec
import torch
from torch import Tensor, nn

from stretto.buckets import Bucket, Room, layouts
from stretto.data import Shard
from stretto.data.standing import Standing
from stretto.notices import Given
from stretto.preparing import named
from stretto.session import Closing, Layout
from stretto.simulate.promises import Broken
from stretto.simulate.task import Part
from stretto.simulate.trainer import BUCKETS, Trainer

T = TypeVar("T")
ROOM: Final = Room(lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8))


class Coming(Generic[T]):
    """What is waited for when, and if, somebody awaits it."""

    def __init__(self, wait: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()


class Wired(Trainer):
    """``model``: a parameter for each bucket, which are the weights; ``late``: we came when others were training."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        job, size = self._job, len(self.uids)
        self._shard = Shard(
            torch.arange(job.samples),
            job.batch_size,
            epochs=job.epochs,
            rank=self.rank,
            size=size,
            shuffle=False,
            on_batch=self._weigh,
            fenced=True,
            members=self.uids,
        )
        self._share = 1.0
        self.model = nn.ParameterList(self.weights.split(job.sizes))
        self.late = self._process.uid not in self.uids
        self._ended: tuple[Closing, tuple[Part, ...]] | None = None

    @property
    @abstractmethod
    def buckets(self) -> Sequence[Bucket]:
        """What is exchanged."""

    @property
    @abstractmethod
    def agreed(self) -> Tensor:
        """The weights that all have alike."""

    @property
    @abstractmethod
    def remembered(self) -> Tensor:
        """What optimizers remember that all have alike, in one piece."""

    @abstractmethod
    async def _begin(self) -> None:
        """All have the first agent's weights."""

    @abstractmethod
    async def _collect(self) -> None:
        """Wait for what is under way."""

    @abstractmethod
    async def _step(self, gradient: Tensor) -> None: ...

    @property
    def layouts(self) -> Sequence[Layout]:
        return [*layouts(self.buckets, named([self.model])), Layout(0)]

    async def _train(self) -> None:
        await self._begin()
        batches = iter(self._shard)
        while not self.leaving:
            await self._count(now=self._job.late)
            batch = next(batches, None)
            if batch is None:
                self._check_end()
                return
            await self._count(now=not self._job.late)
            await self._process.sleep(2 * self._pace * self._random.random())
            await self._step(self._job.gradient(self.weights, batch.tolist()))
            self._note()

    def _check_end(self) -> None:
        if not torch.equal(self.weights, self.agreed):
            raise Broken("all have agreed for the last time, and an agent's weights are others")

    async def _count(self, *, now: bool) -> None:
        if now and self._job.counts(self._shard.drawn - (not self._job.late)):
            await self._collect()
            self._note()
            await self._mean_of_number()

    def _weigh(self, share: float) -> None:
        self._share = share

    # The wire

    @property
    def size(self) -> int:
        return len(self.uids)

    @property
    def drawn(self) -> int | None:
        return self._shard.drawn

    @property
    def ends(self) -> bool:
        return self._shard.ends

    def wishes(self) -> tuple[bool, bool]:
        return False, self.held

    def agree(self, given: Sequence[Given], *, fence: bool) -> Awaitable[Closing]:
        self._note()
        orders = [
            self._order("mean", one.flat, group=BUCKETS, bucket=i, of=len(given), fence=fence, part=one.part)
            for i, one in enumerate(given)
        ]
        return Coming(lambda: self._last(orders))

    async def _last(self, orders: Sequence[int]) -> Closing:
        closings = [await self._wait(order) for order in orders]
        return next(closing for closing in closings if closing is not None)

    def mix(self, part: int, x: Tensor, clock: int) -> Awaitable[bool]:
        order = self._order("mix", x, group=BUCKETS, part=part, clock=clock)
        return Coming(lambda: self._mixed(order))

    async def _mixed(self, order: int) -> bool:
        return await self._wait(order) is None

    def closed(self, closing: Closing, *, save: bool, but: int) -> None:
        pending = msgspec.convert(self._shard.state(), Standing).pending
        parts = tuple(
            Part(uid, handed.deal.epoch, handed.deal.part(handed.step, rank), handed.deal.share(handed.step, rank))
            for handed in pending[: len(pending) - but]
            for rank, uid in enumerate(handed.members)
            if uid in closing.contributors
        )
        self._shard.committed(closing.contributors, but=but)
        self._move(closing)
        self._ended = closing, parts

    # The record

    def _note(self) -> None:
        """What ended, and what landed."""
        if self._ended is not None:
            (closing, parts), self._ended = self._ended, None
            who = tuple({part.uid for part in parts})
            usual = self._strategy.schedule.due(self._shard.drawn - 1)
            place = self._record.commit(self.place, parts, who, self.agreed, self.remembered, usual=usual)
            self._applied(closing, place)
        elif self.place and not self._record.holds(self.place, self.agreed, self.remembered):
            self.place = self._record.commit(self.place, (), (), self.agreed, self.remembered)

    def _move(self, closing: Closing | None) -> None:
        super()._move(closing)
        if closing is not None and closing.epoch is not None:
            self._shard.enter(None, self.rank, len(self.uids), members=self.uids)
