"""Gradients in flat buckets, exchanged as backward produces them.

Theory of operation. Parameters lie in buckets (:mod:`stretto.buckets`) in about the order in which backward reaches
them. After a step every ``.grad`` is a view of its bucket. A hook on each parameter sees its gradient the moment it is
final; when the last of a bucket is there the bucket leaves, always in the order of buckets, so that all agents exchange
the same things in the same order. A callback at the end of backward sends what is left, waits, and puts the means in
place, so clipping, AMP's scaler and the optimizer after it see the gradient of the whole batch.

The flags say whether anybody used a parameter; if nobody did, its ``.grad`` is ``None`` again, as it would be in one
process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from stretto.buckets import Passengers, Room, buckets_of, trainable
from stretto.session import Closing

Wait: TypeAlias = Callable[[], Closing | None]
Send: TypeAlias = Callable[[int, int, Tensor, Tensor], Wait]


class Gradients:
    """The gradients of one or several models, exchanged together.

    Args:
        send: ``send(bucket, of, flat, mean)`` begins the exchange of one of ``of`` buckets; what it returns waits.
        closed: told how a round ended, before its means are put in place, and whether anybody wished.
        wishes: do we wish, this round?
        turns: where backward reaches several of us, whose exchange is under way and who comes next.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        room: Room,
        send: Send,
        *,
        closed: Callable[[Closing, bool], None] = lambda closing, wished: None,
        wishes: Callable[[], bool] = lambda: False,
        turns: deque[Gradients] | None = None,
    ) -> None:
        self._turns = deque() if turns is None else turns
        self._send, self._closed, self._wishes = send, closed, wishes
        self._passengers = Passengers(models, room)
        self.buckets = buckets_of(trainable(models), self._passengers.numel, room)
        self.weight = 1.0
        self._paused = self._running = False
        self._next = 0
        self._waits: list[Wait] = []
        for number, bucket in enumerate(self.buckets):
            for place, parameter in enumerate(bucket.parameters):
                parameter.register_post_accumulate_grad_hook(self._hook(number, place))

    def _hook(self, number: int, place: int) -> Callable[[Tensor], None]:
        bucket = self.buckets[number]

        def arrived(_: Tensor) -> None:
            if self._paused:
                return
            if not self._running:
                self._running = True
                self._turns.append(self)
                torch.autograd.Variable._execution_engine.queue_callback(self.finish)
            bucket.take(place)
            if not bucket.missing and self._turns[0] is self:
                self._launch(everything=False)

        return arrived

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Inside, backward only adds up; the next backward outside exchanges the sum."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _launch(self, *, everything: bool) -> None:
        while self._next < len(self.buckets):
            bucket = self.buckets[self._next]
            if bucket.missing and not everything:
                return
            for place, there in enumerate(bucket.arrived):
                if not there:
                    bucket.take(place)
            self._passengers.board(bucket.passengers)
            bucket.weigh(self.weight, wish=self._next == 0 and self._wishes())
            self._waits.append(self._send(self._next, len(self.buckets), bucket.flat, bucket.mean))
            self._next += 1

    def finish(self) -> None:
        """Send what is left, wait for all, and put the means in place. Backward calls it when it ends."""
        try:
            with torch.no_grad():
                self._launch(everything=True)
                closings = [wait() for wait in self._waits]
                closing = next((c for c in closings if c is not None), None)
                if closing is not None:
                    self._closed(closing, self.buckets[0].wished)
                for bucket in self.buckets:
                    passengers, used = bucket.settle(closing)
                    for parameter, view, flag in zip(bucket.parameters, bucket.means, used, strict=True):
                        parameter.grad = view if flag > 0 else None
                    self._passengers.alight(passengers)
        finally:
            self._running, self._next = False, 0
            self._turns.popleft()
            self._waits.clear()
