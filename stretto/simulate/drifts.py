"""A simulated agent that trains by itself: the real :class:`stretto.loose.Loose`.

Its own optimizer is plain SGD, which remembers nothing, so where all agree on everything at once what they did can be
computed again from the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stretto.buckets import Bucket
from stretto.drifts import Drifts as Drift
from stretto.loose import Loose
from stretto.notices import notices
from stretto.simulate.task import RATE
from stretto.simulate.wired import ROOM, Wired


class Drifts(Wired):
    """Between two agreements its weights are its own; what all share are the anchors."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._drifts = Drift([self.model], self._strategy, ROOM, most=1)

    @property
    def buckets(self) -> Sequence[Bucket]:
        return self._drifts.buckets

    @property
    def agreed(self) -> Tensor:
        shared = self._drifts.shared()
        return torch.cat([shared[id(p)].flatten() for p in self.model.parameters()])

    @property
    def remembered(self) -> Tensor:
        states = zip(self._drifts.state(), self.buckets, strict=True)
        return torch.cat([torch.zeros_like(bucket.elements) if x is None else x.flatten() for x, bucket in states])

    async def _begin(self) -> None:
        self._drifts.adopt(self._drifts.state())
        self._loose = Loose(self._strategy, self._drifts, notices(ROOM), self, late=self.late)

    async def _collect(self) -> None:
        await self._loose.collect()

    async def _step(self, gradient: Tensor) -> None:
        self.weights.sub_(gradient, alpha=RATE * self._share)
        await self._loose.stepped()

    def _shared(self) -> dict[str, Any]:
        return {"anchor": self.agreed, "outers": self._loose.state(), "shard": self._shard.state()}

    def _adopt(self, tree: dict[str, Any]) -> None:
        self.weights.copy_(tree["anchor"])
        self._shard.adopt(tree["shard"], join=True)
        self._loose.adopt(tree["outers"])
        self._record.check_healed(self.place, self.agreed, self.remembered)
