"""The drift of weights: every agent trains by itself, and what it moved away by is exchanged now and then.

Theory of operation. *Anchors* are the weights that all agreed on last. Between two exchanges each agent's optimizer
moves its own weights; the *drift* is anchor less weights, a gradient by its sign. The mean drift goes to the strategy's
outer optimizer, which makes a step of it; it is taken from the anchors, and everybody's weights are these again.

A batch counts for its share: where agents' batches differ in size, an agent's gradients are scaled by its part before
its optimizer sees them, so that the mean drift of plain SGD after one step is that of the whole batch.

What is shared by all, at any time: anchors, buffers as they were averaged last, and what the outer optimizer remembers.
That is what a newcomer is given. What an agent's own optimizer remembers is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stretto.buckets import BufferRule, Passengers, Send, buckets_of
from stretto.core import Outer
from stretto.errors import Diverged
from stretto.session import Closing


class Drifts:
    """The drift of one or several models, exchanged together. Arguments as of :class:`stretto.gradients.Gradients`.

    ``outer`` makes a step of the mean drift.

    Attributes:
        weight: how often the gradients of the batch under way count.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        outer: Outer,
        *,
        allocate: Callable[[int], Tensor],
        send: Send,
        closed: Callable[[Closing, bool], None] = lambda closing, wished: None,
        wishes: Callable[[], bool] = lambda: False,
        leads: Callable[[], bool] = lambda: True,
        buffers: BufferRule = "mean",
        apart: bool = False,
    ) -> None:
        self._models, self._outer = models, outer
        self._send, self._closed, self._wishes = send, closed, wishes
        self._passengers = Passengers(models, buffers, leads)
        self.buckets = buckets_of(models, self._passengers.numel, allocate, apart=apart)
        self.weight = 1.0
        self._anchors = [[p.detach().clone() for p in bucket.parameters] for bucket in self.buckets]
        self._agreed = [b.clone() for b in self._buffers()]
        self._outers = [outer.init(bucket.elements) for bucket in self.buckets]
        for bucket in self.buckets:
            for p in bucket.parameters:
                p.register_hook(self._scaled)

    @torch.no_grad()
    def exchange(self, step: int) -> None:
        """All agents call it after the same batch; ``step`` of them are trained.

        Raises:
            Diverged: the mean is not finite.
        """
        waits = []
        for number, (bucket, anchors) in enumerate(zip(self.buckets, self._anchors, strict=True)):
            for view, anchor, p in zip(bucket.views, anchors, bucket.parameters, strict=True):
                torch.sub(anchor, p, out=view)
            self._passengers.board(bucket.passengers)
            bucket.weigh(1.0, wish=number == 0 and self._wishes())
            waits.append(self._send(number, len(self.buckets), bucket.flat, bucket.mean))
        closing = next((c for c in [wait() for wait in waits] if c is not None), None)
        if closing is not None:
            self._closed(closing, self.buckets[0].wished)
        for number in range(len(self.buckets)):
            self._land(number, closing, step)
        self._agreed = [b.clone() for b in self._buffers()]

    def _land(self, number: int, closing: Closing | None, step: int) -> None:
        bucket = self.buckets[number]
        passengers, _ = bucket.settle(closing)
        if not bucket.elements.isfinite().all():
            raise Diverged(
                f"after {step} steps the weights' mean drift is not finite: lower the learning rate, or the outer one"
            )
        move, self._outers[number] = self._outer.update(bucket.elements, self._outers[number])
        pieces = move.split([p.numel() for p in bucket.parameters])
        for anchor, piece, p in zip(self._anchors[number], pieces, bucket.parameters, strict=True):
            anchor.sub_(piece.view_as(anchor))
            p.copy_(anchor)
        self._passengers.alight(passengers)

    def accumulate(self) -> AbstractContextManager[None]:
        """Nothing is exchanged in backward."""
        return nullcontext()

    def shared(self) -> dict[int, Tensor]:
        """What all have alike in place of a parameter or buffer, by its ``id``."""
        found = {
            id(p): anchor
            for bucket, anchors in zip(self.buckets, self._anchors, strict=True)
            for p, anchor in zip(bucket.parameters, anchors, strict=True)
        }
        return found | {id(b): agreed for b, agreed in zip(self._buffers(), self._agreed, strict=True)}

    def state(self) -> list[Any]:
        """What the outer optimizer remembers, in plain values."""
        return list(self._outers)

    @torch.no_grad()
    def adopt(self, outers: Sequence[Any]) -> None:
        """The models have been given the weights and buffers that all share: begin there."""
        for bucket, anchors in zip(self.buckets, self._anchors, strict=True):
            for p, anchor in zip(bucket.parameters, anchors, strict=True):
                anchor.copy_(p)
        self._agreed = [b.clone() for b in self._buffers()]
        self._outers = [x.clone() if isinstance(x, Tensor) else x for x in outers]

    def _buffers(self) -> Iterator[Tensor]:
        seen: set[int] = set()
        for model in self._models:
            for b in model.buffers():
                if b.is_floating_point() and id(b) not in seen:
                    seen.add(id(b))
                    yield b

    def _scaled(self, gradient: Tensor) -> Tensor | None:
        return gradient * self.weight if self.weight != 1.0 else None
