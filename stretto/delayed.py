"""Gradients whose mean lands one step later: they are exchanged while the next ones are computed.

Theory of operation. At the end of a backward the mean of the gradients before is there, or is waited for, and becomes
``.grad``; those that were just computed leave, and have all the time until the next backward ends. So every optimizer
step is made by the gradient of weights one step old; the first finds none, and is made by zeros.

When somebody wants in, when we find that the others have gone on without us, and after the last batch, agents wait: the
mean that has not landed is added to what each sends, so that both land in one step, nothing is under way at the fence
and a newcomer has all. Otherwise rounds are no fences.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stretto.buckets import BUCKET, Passengers, Room, buckets_of, trainable
from stretto.notices import Given, Wire, noticed
from stretto.session import Closing


@dataclass(slots=True)
class Flight:
    """A round under way: of all batches drawn up to ``upto``."""

    upto: int
    coming: Awaitable[Closing] | None
    closing: Closing | None = None


class Delayed:
    """The gradients of one or several models, exchanged together, one step behind.

    Args:
        notice: two tensors, as for :class:`stretto.loose.Loose`.
        late: we are new: our first round is a fence.
        begun: called at the end of each backward, to run :meth:`exchange`.

    Attributes:
        weight: how often the gradients of the batch under way count.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        room: Room,
        notice: tuple[Tensor, Tensor],
        wire: Wire,
        *,
        late: bool,
        begun: Callable[[Delayed], None],
        most: int = BUCKET,
    ) -> None:
        self._passengers = Passengers(models, room)
        self.buckets = buckets_of(trainable(models), self._passengers.numel, room, most)
        self._landed = [torch.zeros_like(bucket.elements) for bucket in self.buckets]
        self._notice, self._wire, self._begun = notice, wire, begun
        self.weight = 1.0
        self._flight: Flight | None = None
        self._wait_next, self._paused, self._running = late, False, False
        for bucket in self.buckets:
            for p in bucket.parameters:
                p.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, _: Tensor) -> None:
        if not self._paused and not self._running:
            self._running = True
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._begun(self))

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Inside, backward only adds up; the next backward outside exchanges the sum."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    async def exchange(self) -> None:
        """All gradients are there: send them, and put in their place the mean of those before. With gradients off."""
        self._running = False
        used = await self._land()
        if used is None:
            for landed in self._landed:
                landed.zero_()
        waits = self._wait_next or self._wire.ends
        for number, bucket in enumerate(self.buckets):
            for place in range(len(bucket.parameters)):
                bucket.take(place)
            if waits and used is not None:
                bucket.leaving.add_(self._landed[number])
                for place, flag in enumerate(used[number]):
                    bucket.flags[place] = max(flag, float(bucket.flags[place]))
            self._passengers.board(bucket.passengers)
            bucket.weigh(self.weight)
        flat, mean = self._notice
        noticed(flat, self._wire.wishes())
        given = [Given(number, bucket.flat, bucket.mean) for number, bucket in enumerate(self.buckets)]
        coming = self._wire.agree([Given(len(given), flat, mean), *given], fence=waits)
        if waits:
            closing = await coming  # (we may be given what all share meanwhile)
            self._heard(closing, 0)
            self._wait_next, used = False, self._take(closing)
        else:
            self._flight = Flight(self._wire.drawn or 0, coming)
        for number, bucket in enumerate(self.buckets):
            for place, (p, piece) in enumerate(zip(bucket.parameters, bucket.cut(self._landed[number]), strict=True)):
                p.grad = piece.view_as(p) if used is None or used[number][place] > 0 else None

    async def collect(self) -> None:
        """Wait for what is under way; it lands when the next backward ends."""
        flight = self._flight
        if flight is not None and flight.coming is not None and flight.closing is None:
            flight.closing = await flight.coming
            self._heard(flight.closing, max(0, (self._wire.drawn or 0) - flight.upto))

    def _heard(self, closing: Closing, but: int) -> None:
        """How a round ended, and what is wished."""
        _, save, door, _ = self._notice[1].tolist()
        self._wait_next |= closing.alone or door > 0
        if not closing.alone:
            self._wire.closed(closing, save=save > 0, but=but)

    async def _land(self) -> list[list[float]] | None:
        """Take what was under way."""
        await self.collect()
        flight, self._flight = self._flight, None
        return None if flight is None or flight.closing is None else self._take(flight.closing)

    def _take(self, closing: Closing) -> list[list[float]] | None:
        """The means are in ``_landed``; by bucket, was each gradient anybody's? None where nothing came."""
        if closing.alone:
            return None
        used = []
        for bucket, landed in zip(self.buckets, self._landed, strict=True):
            passengers, flags = bucket.settle(closing)
            landed.copy_(bucket.elements)
            self._passengers.alight(passengers)
            used.append(flags)
        return used

    # What others are given (as of :class:`stretto.loose.Loose`)

    async def draw(self, end: bool) -> None:
        """Nothing is due between two batches."""

    async def synchronise(self) -> None:
        """All are alike at any time."""

    def shared(self) -> dict[int, Tensor]:
        """All weights are."""
        return {}

    def state(self) -> list[Any]:
        """The mean that has not landed, in plain values."""
        flight = self._flight
        if flight is None or flight.closing is None or flight.closing.alone:
            return []
        return [flight.closing.whole, *(bucket.mean for bucket in self.buckets)]

    @torch.no_grad()
    def adopt(self, outers: list[Any]) -> None:
        """We have been given what all share."""
        self._flight = None
        if outers:
            for bucket, mean in zip(self.buckets, outers[1:], strict=True):
                bucket.mean.copy_(mean)
            self._flight = Flight(0, None, Closing(0, (), outers[0]))

    async def own(self) -> None:
        """Nothing is; what is under way is waited for."""
        await self.collect()

    def become_own(self, own: None) -> None: ...
