"""A simulated agent whose gradients are averaged after every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from stretto.ledger import Deal, Ledger, deal
from stretto.session import Closing
from stretto.simulate.task import MOMENTUM, RATE, Part, samples
from stretto.simulate.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Drawn:
    """The batch under way: how it was dealt, to whom, and which of them we are."""

    deal: Deal
    uids: tuple[int, ...]
    rank: int


class Gradients(Trainer):
    """Everybody's momentum is the same."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.ledger = Ledger.begin(self._job.samples, shuffle=False)
        self.momentum = torch.zeros_like(self.weights)
        self._draw()

    async def _train(self) -> None:
        while self.ledger.epoch < self._job.epochs and not self.leaving:
            if not self._job.late:
                self._draw()
            if self._job.counts(self.ledger.steps):
                await self._mean_of_number()
            if self._job.late:
                self._draw()
            await self._step()

    def _draw(self) -> None:
        self._drawn = Drawn(deal(self.ledger, (1,) * len(self.uids), self._job.batch_size), self.uids, self.rank)

    async def _step(self) -> None:
        dealt, rank = self._drawn.deal, self._drawn.rank
        gradient = self._job.gradient(self.weights, samples(dealt.part(0, rank)))
        self._apply(await self._exchange(gradient.split(self._job.sizes), dealt.share(0, rank), self._pace))

    def _apply(self, closing: Closing) -> None:
        self.momentum.mul_(MOMENTUM).add_(torch.cat(self._means(closing)))
        self.weights.add_(self.momentum, alpha=-RATE)
        dealt, uids = self._drawn.deal, self._drawn.uids
        ranks = [r for r, uid in enumerate(uids) if uid in closing.contributors]
        self.ledger = self.ledger.commit(dealt, 0, ranks)
        parts = tuple(Part(uids[r], dealt.epoch, dealt.part(0, r), dealt.share(0, r)) for r in ranks)
        who = tuple(part.uid for part in parts)
        self._applied(closing, self._record.commit(self.place, parts, who, self.weights, self.momentum))

    def _shared(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "momentum": self.momentum,
            "uids": list(self._drawn.uids),
            "ledger": msgspec.json.encode(self.ledger).decode(),
        }

    def _adopt(self, tree: dict[str, Any]) -> None:
        self.weights.copy_(tree["weights"])
        self.momentum.copy_(tree["momentum"])
        self.ledger = msgspec.json.decode(tree["ledger"], type=Ledger)
        uids = tuple(tree["uids"])
        self._drawn = Drawn(deal(self.ledger, (1,) * len(uids), self._job.batch_size), uids, 0)
        self._record.check_healed(self.place, self.weights, self.momentum)
