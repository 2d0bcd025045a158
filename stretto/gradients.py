"""Gradients in flat buckets, exchanged as backward produces them.

Theory of operation. The parameters of a model are laid out in a few flat tensors, in the reverse of their order,
which is about the order in which backward reaches them. After a step every ``.grad`` is a view of its bucket. A hook
on each parameter sees its gradient the moment it is final; when the last of a bucket is there the bucket leaves,
always in the order of buckets, so that all agents exchange the same things in the same order. A callback at the end
of backward sends what is left, waits, and puts the means in place, so clipping, AMP's scaler and the optimizer after
it see the gradient of the whole batch.

    bucket = gradients │ one flag a parameter │ weight │ wish │ (last bucket) buffers

The flags say whether anybody used a parameter; if nobody did, its ``.grad`` is ``None`` again, as it would be in one
process. What an agent sends counts ``weight`` times, and the mean weight comes back with the mean: where not all that
were counted on took part, the mean is divided by it, and is the exact mean over the samples of those who did. A wish
of anybody's reaches all in the same round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from stretto.core import Named
from stretto.errors import UsageError
from stretto.session import Closing, Layout

BUCKET = 4 << 20
"""Bytes of gradient that fill a bucket."""

BufferRule: TypeAlias = Literal["mean", "broadcast", "local"]

Wait: TypeAlias = Callable[[], Closing | None]


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one parameter's gradient lies in its bucket, in elements."""

    parameter: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One bucket: its dtype, the pieces in it, and its length in elements with flags and buffers."""

    dtype: torch.dtype
    pieces: tuple[Piece, ...]
    gradients: int
    numel: int


def plan_buckets(sizes: Sequence[tuple[int, torch.dtype]], buffers: int = 0, most: int = BUCKET) -> tuple[Plan, ...]:
    """Lay parameters of (elements, dtype) out in buckets of about ``most`` bytes, last parameter first.

    ``buffers`` elements ride in the last float32 bucket. Pure: all agents get the same plan from the same model.
    """
    plans: list[Plan] = []
    by_dtype: dict[torch.dtype, list[int]] = {}
    for i in reversed(range(len(sizes))):
        by_dtype.setdefault(sizes[i][1], []).append(i)
    for dtype, members in by_dtype.items():
        pieces: list[Piece] = []
        at = 0
        for i in members:
            pieces.append(Piece(i, at, at + sizes[i][0]))
            at += sizes[i][0]
            if at * dtype.itemsize >= most:
                plans.append(Plan(dtype, tuple(pieces), at, at + len(pieces) + 2))
                pieces, at = [], 0
        if pieces:
            plans.append(Plan(dtype, tuple(pieces), at, at + len(pieces) + 2))
    if buffers:
        at = max((i for i, p in enumerate(plans) if p.dtype == torch.float32), default=len(plans))
        last = plans[at] if at < len(plans) else Plan(torch.float32, (), 0, 2)
        plans[at : at + 1] = [Plan(last.dtype, last.pieces, last.gradients, last.numel + buffers)]
    return tuple(plans)


class Bucket:
    """One flat tensor and the views of it that parameters' gradients are; ``mean`` is what becomes of it.

    ``mean`` may be ``flat`` itself.
    """

    def __init__(
        self, plan: Plan, flat: Tensor, parameters: Sequence[nn.Parameter], mean: Tensor | None = None
    ) -> None:
        self.plan, self.flat = plan, flat
        self.mean = flat if mean is None else mean
        self.parameters = [parameters[p.parameter] for p in plan.pieces]
        self.views = self._views(flat)
        self.means = self.views if mean is None else self._views(mean)
        self.arrived = [False] * len(self.views)
        self.missing = len(self.views)
        self.flags = self._cut(flat)[1]
        self.flags.fill_(1.0)

    @property
    def passengers(self) -> Tensor:
        """Room for what rides along."""
        return self._cut(self.flat)[4]

    @property
    def wished(self) -> bool:
        """Did anybody wish?"""
        return bool(self._cut(self.mean)[3] > 0)

    def _views(self, flat: Tensor) -> list[Tensor]:
        return [flat[p.start : p.stop].view_as(q) for p, q in zip(self.plan.pieces, self.parameters, strict=True)]

    def _cut(self, flat: Tensor) -> Sequence[Tensor]:
        """Gradients, flags, weight, wish, passengers."""
        at, pieces = self.plan.gradients, len(self.plan.pieces)
        return torch.split(flat, [at, pieces, 1, 1, len(flat) - at - pieces - 2])

    def take(self, place: int) -> None:
        """A gradient is final: move it here unless it already is."""
        parameter, view = self.parameters[place], self.views[place]
        grad = parameter.grad
        if grad is None:
            view.zero_()
            self.flags[place] = 0.0
        elif grad.is_sparse:
            raise UsageError("sparse gradients are not exchanged yet: use Embedding(sparse=False)")
        elif grad.data_ptr() != view.data_ptr():
            view.copy_(grad.detach())
            parameter.grad = view
        if not self.arrived[place]:
            self.arrived[place] = True
            self.missing -= 1

    def weigh(self, weight: float, wish: bool = False) -> None:
        """What lies here counts ``weight`` times."""
        gradients, _, place, wishes, passengers = self._cut(self.flat)
        place.fill_(weight)
        wishes.fill_(float(wish))
        if weight != 1.0:
            gradients.mul_(weight)
            passengers.mul_(weight)

    def settle(self, closing: Closing | None = None) -> Tensor:
        """After the exchange: gradients that somebody used are views of the mean, the others ``None``.

        The passengers' mean; none where nobody's samples are in it.
        """
        gradients, flags, weight, _, passengers = self._cut(self.mean)
        if closing is not None and not closing.whole:
            share = float(weight)
            if share > 0:
                gradients.div_(share)
                passengers.div_(share)
            else:  # those who took part had no samples: nothing moves
                passengers = passengers[:0]
        for parameter, view, flag in zip(self.parameters, self.means, flags.tolist(), strict=True):
            parameter.grad = view if flag > 0 else None
        self.flags.fill_(1.0)
        self.arrived = [False] * len(self.views)
        self.missing = len(self.views)
        return passengers


class Gradients:
    """The gradients of one or several models, exchanged together.

    Args:
        allocate: ``allocate(nbytes)`` gives zeroed shared memory (uint8).
        send: ``send(bucket, of, flat, mean)`` begins the exchange of one of ``of`` buckets, from ``flat`` to ``mean``,
            and returns what waits for it.
        apart: may ``flat`` and ``mean`` not be the same memory?
        closed: told how a round ended, before its means are put in place, and whether anybody wished.
        wishes: do we wish, this round?
        leads: is this agent the one whose buffers all others take (rule ``"broadcast"``)?
        turns: where backward reaches several of us, whose exchange is under way and who comes next.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        allocate: Callable[[int], Tensor],
        send: Callable[[int, int, Tensor, Tensor], Wait],
        closed: Callable[[Closing, bool], None] = lambda closing, wished: None,
        wishes: Callable[[], bool] = lambda: False,
        leads: Callable[[], bool] = lambda: True,
        buffers: BufferRule = "mean",
        apart: bool = False,
        turns: deque[Gradients] | None = None,
    ) -> None:
        self._turns = deque() if turns is None else turns
        self._send, self._closed, self._wishes, self._leads, self._rule = send, closed, wishes, leads, buffers
        parameters = list({id(p): p for m in models for p in m.parameters() if p.requires_grad}.values())
        self._buffers = list({id(b): b for m in models for b in m.buffers() if b.is_floating_point()}.values())
        if buffers == "local":
            self._buffers = []
        riding = sum(b.numel() for b in self._buffers)
        riding += buffers == "broadcast" and riding > 0  # whether the first one's are there
        plans = plan_buckets([(p.numel(), p.dtype) for p in parameters], riding)
        flats = _laid_out(plans, allocate)
        means = _laid_out(plans, allocate) if apart else [None] * len(plans)
        self.buckets = [Bucket(p, f, parameters, m) for p, f, m in zip(plans, flats, means, strict=True)]
        self.weight = 1.0
        self._agreed: Tensor | None = None
        self._paused = self._running = False
        self._next = 0
        self._waits: list[Wait] = []
        for number, bucket in enumerate(self.buckets):
            for place, parameter in enumerate(bucket.parameters):
                parameter.register_post_accumulate_grad_hook(self._hook(number, place))

    def layouts(self, named: Mapping[int, Named]) -> list[Layout]:
        """What lies in each bucket; ``named`` knows parameters by their ``id``."""
        return [Layout(b.plan.gradients, tuple(named[id(p)] for p in b.parameters)) for b in self.buckets]

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
            if bucket.passengers.numel():
                self._board(bucket.passengers)
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
                    passengers = bucket.settle(closing)
                    if passengers.numel():
                        self._alight(passengers)
        finally:
            self._running, self._next = False, 0
            self._turns.popleft()
            self._waits.clear()

    def _board(self, passengers: Tensor) -> None:
        at = 0
        for b in self._buffers:
            passengers[at : at + b.numel()] = b.detach().reshape(-1)
            at += b.numel()
        if self._rule == "broadcast":
            passengers[at] = 1.0
            if not self._leads():
                passengers.zero_()

    def _alight(self, passengers: Tensor) -> None:
        if self._rule == "broadcast":
            self._keep_the_first_ones(passengers)
            if self._agreed is None:
                return
            passengers = self._agreed
        at = 0
        for b in self._buffers:
            b.copy_(passengers[at : at + b.numel()].view_as(b))
            at += b.numel()

    def _keep_the_first_ones(self, passengers: Tensor) -> None:
        """Where the first agent died on the way nothing came; all keep what they had from it last."""
        rode = float(passengers[-1])
        if rode > 0:
            self._agreed = passengers / rode


def _laid_out(plans: Sequence[Plan], allocate: Callable[[int], Tensor]) -> list[Tensor]:
    memory = allocate(sum(_padded(p) for p in plans))
    flats, at = [], 0
    for plan in plans:
        flats.append(memory[at : at + plan.numel * plan.dtype.itemsize].view(plan.dtype).zero_())
        at += _padded(plan)
    return flats


def _padded(plan: Plan) -> int:
    return -(-plan.numel * plan.dtype.itemsize // 64) * 64
