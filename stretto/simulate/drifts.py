"""A simulated agent that trains by itself, and whose drift is averaged now and then.

It draws from the real :class:`stretto.data.Shard`, which holds what is pending between two exchanges. Its own optimizer
is plain SGD, which remembers nothing, so what all agents did can be computed again from the record.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import Tensor

from stretto.core import State
from stretto.data import Shard
from stretto.data.standing import Standing
from stretto.session import Closing
from stretto.simulate.task import RATE, Part
from stretto.simulate.trainer import Trainer


class Drifts(Trainer):
    """``anchor``: the weights that all agreed on last."""

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
        self._late = self._process.uid not in self.uids
        self._share = 1.0
        self._anchor = self.weights
        self._outers: list[State] = [self._strategy.outer.init(bucket[:-1]) for bucket in self._buckets]

    async def _train(self) -> None:
        self._anchor = self.weights.clone()
        batches = iter(self._shard)
        while self._left and not self.leaving:
            await self._count(now=self._job.late)
            batch = next(batches)
            await self._count(now=not self._job.late)
            await self._process.sleep(2 * self._pace * self._random.random())
            self.weights.sub_(self._job.gradient(self.weights, batch.tolist()), alpha=RATE * self._share)
            if self._late or self._strategy.schedule.due(self._shard.drawn - 1) or not self._left:
                await self._synchronise()

    @property
    def _left(self) -> bool:
        """Is there a batch to draw, if nobody's is dealt again?"""
        return self._shard.drawn < len(self._shard)

    async def _count(self, *, now: bool) -> None:
        if now and self._job.counts(self._shard.drawn - (not self._job.late)):
            await self._mean_of_number()

    def _weigh(self, share: float) -> None:
        self._share = share

    async def _synchronise(self) -> None:
        self._late = False
        pieces = (self._anchor - self.weights).split(self._job.sizes)
        closing = await self._exchange(pieces, 1.0, self._pace / 2)
        moves = []
        for number, mean in enumerate(self._means(closing)):
            move, self._outers[number] = self._strategy.outer.update(mean, self._outers[number])
            moves.append(move)
        self._anchor.sub_(torch.cat(moves))
        self.weights.copy_(self._anchor)
        self._commit(closing)

    def _commit(self, closing: Closing) -> None:
        parts = tuple(
            Part(uid, handed.deal.epoch, handed.deal.part(handed.step, rank), handed.deal.share(handed.step, rank))
            for handed in msgspec.convert(self._shard.state(), Standing).pending
            for rank, uid in enumerate(handed.members)
            if uid in closing.contributors
        )
        self._shard.committed(closing.contributors)
        who, remembered = tuple({part.uid for part in parts}), self._remembered()
        self._applied(closing, self._record.commit(self.place, parts, who, self._anchor, remembered))

    def _remembered(self) -> Tensor:
        """What the outer optimizer does, in one piece."""
        states = zip(self._outers, self._buckets, strict=True)
        return torch.cat([torch.zeros_like(bucket[:-1]) if x is None else x for x, bucket in states])

    def _move(self, closing: Closing | None) -> None:
        super()._move(closing)
        if closing is not None and closing.epoch is not None:
            self._shard.enter(None, self.rank, len(self.uids), members=self.uids)

    def _shared(self) -> dict[str, Any]:
        return {"anchor": self._anchor, "outers": self._outers, "shard": self._shard.state()}

    def _adopt(self, tree: dict[str, Any]) -> None:
        self._anchor.copy_(tree["anchor"])
        self._outers = tree["outers"]
        self._shard.adopt(tree["shard"], join=True)
        self._record.check_healed(self.place, self._anchor, self._remembered())
