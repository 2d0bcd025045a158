"""What an agent trained by itself since it heard of servers last: memory for its drift, and for the values they hold.

The values that came last are the *anchor*. Our optimizer moves our own weights away from it; what is pushed is anchor
less weights, a gradient by its sign, and then our weights are the values that come back.

A batch counts for its share: its gradients are scaled by it before our optimizer sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from stretto.buckets import BUCKET, Room, plan_buckets, trainable
from stretto.core import Named, Strategy
from stretto.pushed import bucket_of
from stretto.schedules import window
from stretto.server.rules import Rule
from stretto.server.space import Extent
from stretto.session import Layout


class Drifted:
    """The drift of ``models``, pushed after a window of batches as ``strategy`` says; see :class:`Pushed`."""

    def __init__(self, models: Sequence[nn.Module], strategy: Strategy, room: Room, most: int = BUCKET) -> None:
        self.rule = Rule.landing(strategy.outer)
        self._every = window(strategy.schedule)
        self._batches, self._share = 0, 1.0
        parameters = trainable(models)
        plans = plan_buckets([(p.numel(), p.dtype) for p in parameters], most=most)
        self.buckets = [bucket_of(tuple(parameters[piece.parameter] for piece in plan.pieces), room) for plan in plans]
        for p in parameters:
            p.register_hook(self._scaled)

    @property
    def extents(self) -> tuple[Extent, ...]:
        """What lies in each bucket, all in one group."""
        return tuple(bucket.extent({id(p): 0 for p in bucket.parameters}) for bucket in self.buckets)

    def layouts(self, named: Mapping[int, Named]) -> list[Layout]:
        """The same, for codecs; ``named`` knows parameters by their ``id``."""
        return [bucket.layout(named) for bucket in self.buckets]

    @property
    def hyper(self) -> Tensor:
        """How many windows were trained since the values came."""
        return torch.tensor([self._batches / self._every], dtype=torch.float64)

    @property
    def weight(self) -> float:
        """Each agent's drift is an equal part."""
        return 1.0

    @property
    def due(self) -> bool:
        """Is a window trained?"""
        return self._batches >= self._every

    @property
    def left(self) -> bool:
        """Is something trained that was not pushed?"""
        return self._batches > 0

    def weigh(self, share: float) -> None:
        """A batch is being trained that counts so many times."""
        self._share = share

    def trained(self) -> None:
        """Our optimizer has made a step."""
        self._batches += 1

    @torch.no_grad()
    def move_in(self) -> None:
        """What we have is what servers have."""
        for _, p, values in self._pieces():
            values.copy_(p)

    @torch.no_grad()
    def take(self) -> list[tuple[Tensor, ...]]:
        """What is to be pushed, by bucket."""
        for flat, p, values in self._pieces():
            torch.sub(values, p, out=flat)
        self._batches = 0
        return [(bucket.flat,) for bucket in self.buckets]

    def give_back(self) -> None:
        """Gradients were not taken."""

    @torch.no_grad()
    def land(self) -> None:
        """Values came: we go on from these."""
        self._batches = 0
        for _, p, values in self._pieces():
            p.copy_(values)

    def adopt(self) -> None:
        """The models have been given the weights that all share."""
        self._batches = 0
        self.move_in()

    def shared(self) -> dict[int, Tensor]:
        """The values that came last, in place of a parameter, by its ``id``."""
        return {id(p): values for _, p, values in self._pieces()}

    @property
    def finite(self) -> bool:
        return all(bool(x.isfinite().all()) for _, p, values in self._pieces() for x in (p, values))

    def _pieces(self) -> Iterator[tuple[Tensor, nn.Parameter, Tensor]]:
        """Of each parameter where its drift leaves from, itself, and its values."""
        for bucket in self.buckets:
            yield from zip(bucket.cut(bucket.flat), bucket.parameters, bucket.cut(bucket.values), strict=True)

    def _scaled(self, gradient: Tensor) -> Tensor | None:
        return gradient * self._share if self._share != 1.0 else None
