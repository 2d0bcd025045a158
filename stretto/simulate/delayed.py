"""A simulated agent whose gradients land one step late: the real :class:`stretto.delayed.Delayed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stretto.buckets import Bucket
from stretto.delayed import Delayed as Exchange
from stretto.notices import notices
from stretto.simulate.task import MOMENTUM, RATE
from stretto.simulate.wired import ROOM, Wired


class Delayed(Wired):
    """Everybody's weights and momentum are the same, at any time."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.momentum = torch.zeros_like(self.weights)
        self._exchange_of = Exchange(
            [self.model], ROOM, notices(ROOM), self, late=self.late, begun=lambda one: None, most=1
        )

    @property
    def buckets(self) -> Sequence[Bucket]:
        return self._exchange_of.buckets

    @property
    def agreed(self) -> Tensor:
        return self.weights

    @property
    def remembered(self) -> Tensor:
        return self.momentum

    async def _begin(self) -> None:
        """Nothing is to be done."""

    async def _collect(self) -> None:
        await self._exchange_of.collect()

    async def _step(self, gradient: Tensor) -> None:
        self._exchange_of.weight = self._share
        parameters = list(self.model.parameters())
        for p, piece in zip(parameters, gradient.split(self._job.sizes), strict=True):
            p.grad = piece.clone()
        await self._exchange_of.exchange()
        landed = torch.cat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        self.momentum.mul_(MOMENTUM).add_(landed)
        self.weights.add_(self.momentum, alpha=-RATE)

    def _shared(self) -> dict[str, Any]:
        return {"weights": self.weights, "momentum": self.momentum, "shard": self._shard.state()}

    def _adopt(self, tree: dict[str, Any]) -> None:
        self.weights.copy_(tree["weights"])
        self.momentum.copy_(tree["momentum"])
        self._shard.adopt(tree["shard"], join=True)
        self._exchange_of.adopt([])
        self._record.check_healed(self.place, self.weights, self.momentum)
