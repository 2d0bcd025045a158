"""The drift of weights: what agents that train by themselves moved away by, and how what all agreed on lands.

Theory of operation. *Anchors* are the weights that all agreed on last. Between two agreements each agent's optimizer
moves its own weights; the *drift* is anchor less weights, a gradient by its sign. The mean drift goes to the strategy's
outer optimizer, which makes a step of it; it is taken from the anchors, and the strategy's landing says what becomes of
an agent's own weights.

A batch counts for its share: where agents' batches differ in size, an agent's gradients are scaled by its part before
its optimizer sees them, so that the mean drift of plain SGD after one step is that of the whole batch.

What is shared by all, at any time: anchors, buffers as they were averaged last, and what the outer optimizer remembers.
That is what a newcomer is given. What an agent's own optimizer remembers is its own.

Parameters are cut into *fragments*, each of whole parameters and in buckets of its own, which may be agreed on at
different times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stretto.buckets import BUCKET, Bucket, Passengers, Room, buckets_of, trainable
from stretto.core import Strategy
from stretto.errors import Diverged, UsageError
from stretto.landings import Replace
from stretto.session import Closing

_LEAP = Replace()


class Drifts:
    """The drift of one or several models, exchanged together, as ``strategy`` says.

    Attributes:
        buckets: of all fragments, in order.
        fragments: the numbers of the buckets of each.
        weight: how often the gradients of the batch under way count.

    Raises:
        UsageError: more fragments than parameters.
    """

    def __init__(self, models: Sequence[nn.Module], strategy: Strategy, room: Room, most: int = BUCKET) -> None:
        self._models, self._outer, self._landing = models, strategy.outer, strategy.landing
        self._passengers = Passengers(models, room)
        self.buckets: list[Bucket] = []
        self.fragments: list[list[int]] = []
        cut = _cut(trainable(models), max(1, strategy.schedule.fragments), str(strategy))
        for number, parameters in enumerate(cut, 1):
            riding = self._passengers.numel if number == len(cut) else 0
            found = buckets_of(parameters, riding, room, most)
            self.fragments.append(list(range(len(self.buckets), len(self.buckets) + len(found))))
            self.buckets += found
        self.weight = 1.0
        self._anchors = [[p.detach().clone() for p in bucket.parameters] for bucket in self.buckets]
        self._bases: dict[int, list[Tensor]] = {}
        self._left: dict[int, list[Tensor]] = {}
        self._agreed = [b.clone() for b in self._buffers()]
        self._outers = [self._outer.init(bucket.elements) for bucket in self.buckets]
        for bucket in self.buckets:
            for p in bucket.parameters:
                p.register_hook(self._scaled)

    def leave(self, part: int) -> None:
        """Put the drift of bucket ``part``, and what rides along, where it leaves from."""
        bucket = self.buckets[part]
        self._write(part)
        if self._landing.behind:
            self._left[part] = [p.detach().clone() for p in bucket.parameters]
        self._passengers.board(bucket.passengers)
        bucket.weigh(1.0)

    def check(self, parts: Sequence[int]) -> bool:
        """Is what is to leave finite? If not zeros leave, which every codec can send. Where no part is: are weights?"""
        if not parts:
            return all(bool(p.isfinite().all()) for bucket in self.buckets for p in bucket.parameters)
        fine = all(bool(self.buckets[part].leaving.isfinite().all()) for part in parts)
        if not fine:
            for part in parts:
                self.buckets[part].flat.zero_()
        return fine

    def land(self, part: int, closing: Closing, step: int, *, leap: bool = False, plain: bool = False) -> None:
        """The mean of bucket ``part`` is there: it moves the anchors, and our weights as the landing says.

        ``leap``: our weights become the anchors, whatever the landing says. ``plain``: these become the mean of all
        weights, and the outer optimizer makes no step of it.

        Raises:
            Diverged: the mean is not finite.
        """
        landing = _LEAP if leap else self._landing
        self._bases.pop(part, None)
        left = self._left.pop(part, self.buckets[part].parameters)
        for (p, anchor, after), then in zip(self._agree(part, closing, step, plain=plain), left, strict=True):
            p.copy_(landing.land(p, then, anchor, after))
            anchor.copy_(after)

    def restart(self, part: int, closing: Closing | None, step: int, guess: float) -> None:
        """The mean of bucket ``part`` is there (None: none was under way), and its next drift is to leave.

        We go on from the new anchors, or, until that one's mean is there, from where ``guess`` times our own drift
        would bring them.
        """
        bucket = self.buckets[part]
        base, was = self._bases.get(part, self._anchors[part]), torch.empty_like(bucket.leaving)
        _fill(was, base, bucket.parameters)
        if closing is not None:
            for _, anchor, after in self._agree(part, closing, step):
                anchor.copy_(after)
        bucket.leaving.copy_(was)
        self._passengers.board(bucket.passengers)
        bucket.weigh(1.0)
        ahead, _ = self._outer.update(was * guess, self._outers[part])
        self._bases[part] = []
        for anchor, piece, p in zip(self._anchors[part], bucket.cut(ahead), bucket.parameters, strict=True):
            p.copy_(anchor - piece.view_as(anchor) if guess else anchor)
            self._bases[part].append(p.detach().clone())

    def alone(self, part: int) -> Tensor:
        """The drift of bucket ``part`` (1-d), where it can be mixed."""
        self._write(part)
        return self.buckets[part].leaving

    def become(self, part: int, drift: Tensor) -> None:
        """Our weights become those that lie by ``drift`` from the anchors."""
        bucket = self.buckets[part]
        for anchor, piece, p in zip(self._anchors[part], bucket.cut(drift), bucket.parameters, strict=True):
            torch.sub(anchor, piece.view_as(anchor), out=p)

    def shift(self, part: int, drift: Tensor) -> None:
        """Our weights drift by so much more."""
        bucket = self.buckets[part]
        for piece, p in zip(bucket.cut(drift), bucket.parameters, strict=True):
            p.sub_(piece.view_as(p))

    def settle(self) -> None:
        """All buffers are as they were agreed on."""
        self._agreed = [b.clone() for b in self._buffers()]

    def accumulate(self) -> AbstractContextManager[None]:
        """Nothing is exchanged in backward."""
        return nullcontext()

    # What others are given

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

    def adopt(self, outers: Sequence[Any]) -> None:
        """The models have been given the weights and buffers that all share: begin there."""
        for bucket, anchors in zip(self.buckets, self._anchors, strict=True):
            for p, anchor in zip(bucket.parameters, anchors, strict=True):
                anchor.copy_(p)
        self._bases.clear()
        self._left.clear()
        self.settle()
        self._outers = [x.clone() if isinstance(x, Tensor) else x for x in outers]

    # What is our own

    def own(self) -> dict[str, Any]:
        """Our weights and buffers, those whose drifts left, and where these are counted from, in plain values."""
        return {
            "weights": [[p.detach() for p in bucket.parameters] for bucket in self.buckets],
            "buffers": list(self._buffers()),
            "bases": [[part, bases] for part, bases in sorted(self._bases.items())],
            "left": [[part, left] for part, left in sorted(self._left.items())],
        }

    def become_own(self, own: dict[str, Any]) -> None:
        for bucket, found in zip(self.buckets, own["weights"], strict=True):
            for p, x in zip(bucket.parameters, found, strict=True):
                p.copy_(x)
        for b, x in zip(self._buffers(), own["buffers"], strict=True):
            b.copy_(x)
        self._bases, self._left = (
            {part: [x.clone() for x in found] for part, found in own[name]} for name in ("bases", "left")
        )

    def _write(self, part: int) -> None:
        bucket = self.buckets[part]
        _fill(bucket.leaving, self._bases.get(part, self._anchors[part]), bucket.parameters)

    def _agree(
        self, part: int, closing: Closing, step: int, *, plain: bool = False
    ) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """Every parameter of the bucket with its anchor, before and after the outer step."""
        bucket = self.buckets[part]
        passengers, _ = bucket.settle(closing)
        if not bucket.elements.isfinite().all():
            raise diverged(step)
        move = bucket.elements
        if not plain:
            move, self._outers[part] = self._outer.update(move, self._outers[part])
        for p, anchor, piece in zip(bucket.parameters, self._anchors[part], bucket.cut(move), strict=True):
            yield p, anchor, anchor - piece.view_as(anchor)
        self._passengers.alight(passengers)

    def _buffers(self) -> Iterator[Tensor]:
        seen: set[int] = set()
        for model in self._models:
            for b in model.buffers():
                if b.is_floating_point() and id(b) not in seen:
                    seen.add(id(b))
                    yield b

    def _scaled(self, gradient: Tensor) -> Tensor | None:
        return gradient * self.weight if self.weight != 1.0 else None


def diverged(step: int) -> Diverged:
    return Diverged(f"after {step} steps weights are not finite: lower the learning rate, or the outer one")


def _cut(parameters: Sequence[nn.Parameter], fragments: int, asked: str) -> list[Sequence[nn.Parameter]]:
    """About equal numbers of elements in each, in order; at least one parameter."""
    if fragments > len(parameters):
        raise UsageError(f"{asked}: {fragments} fragments of {len(parameters)} parameters: give at most as many")
    total, found, at, before = sum(p.numel() for p in parameters), [], 0, 0
    for number in range(1, fragments + 1):
        stop, within = at, before
        last = len(parameters) - (fragments - number)
        while stop < last and (stop == at or 2 * within + parameters[stop].numel() <= 2 * total * number // fragments):
            within += parameters[stop].numel()
            stop += 1
        stop = last if number == fragments else stop
        found.append(parameters[at:stop])
        at, before = stop, sum(p.numel() for p in parameters[:stop])
    return found


def _fill(flat: Tensor, base: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    """``flat`` becomes base less parameters."""
    for piece, b, p in zip(torch.split(flat, [p.numel() for p in parameters]), base, parameters, strict=True):
        torch.sub(b, p, out=piece.view_as(b))
