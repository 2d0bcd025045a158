"""Gradients in flat buckets, exchanged as backward produces them.

Theory of operation. The parameters of a model are laid out in a few flat tensors, in the reverse of their order,
which is about the order in which backward reaches them. After a step every ``.grad`` is a view of its bucket. A hook
on each parameter sees its gradient the moment it is final; when the last of a bucket is there the bucket leaves,
always in the order of buckets, so that all agents exchange the same things in the same order. A callback at the end
of backward sends what is left, waits, and puts the means in place, so clipping, AMP's scaler and the optimizer after
it see the gradient of the whole batch.

    bucket = gradients │ one flag a parameter │ (last bucket) buffers

The flags say whether anybody used a parameter; if nobody did, its ``.grad`` is ``None`` again, as it would be in one
process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from stretto.errors import UsageError

BUCKET = 4 << 20
"""Bytes of gradient that fill a bucket."""

BufferRule: TypeAlias = Literal["mean", "broadcast", "local"]


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
                plans.append(Plan(dtype, tuple(pieces), at, at + len(pieces)))
                pieces, at = [], 0
        if pieces:
            plans.append(Plan(dtype, tuple(pieces), at, at + len(pieces)))
    if buffers:
        at = max((i for i, p in enumerate(plans) if p.dtype == torch.float32), default=len(plans))
        last = plans[at] if at < len(plans) else Plan(torch.float32, (), 0, 0)
        plans[at : at + 1] = [Plan(last.dtype, last.pieces, last.gradients, last.numel + buffers)]
    return tuple(plans)


class Bucket:
    """One flat tensor and the views of it that parameters' gradients are."""

    def __init__(self, plan: Plan, flat: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        self.plan, self.flat = plan, flat
        self.parameters = [parameters[p.parameter] for p in plan.pieces]
        self.views = [flat[p.start : p.stop].view_as(q) for p, q in zip(plan.pieces, self.parameters, strict=True)]
        self.gradients = flat[: plan.gradients]
        self.flags = flat[plan.gradients : plan.gradients + len(plan.pieces)]
        self.passengers = flat[plan.gradients + len(plan.pieces) :]
        self.arrived = [False] * len(self.views)
        self.missing = len(self.views)

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

    def settle(self) -> None:
        """After the exchange: gradients that somebody used are views of the mean, the others ``None``."""
        used = self.flags.tolist()
        for parameter, view, flag in zip(self.parameters, self.views, used, strict=True):
            parameter.grad = view if flag > 0 else None
        self.flags.fill_(1.0)
        self.arrived = [False] * len(self.views)
        self.missing = len(self.views)


class Gradients:
    """The gradients of one or several models, exchanged together.

    ``allocate(nbytes)`` gives zeroed shared memory (uint8); ``send(bucket number, flat tensor)`` begins an exchange and
    returns what waits for it.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        allocate: Callable[[int], Tensor],
        send: Callable[[int, Tensor], Callable[[], None]],
        rank: int = 0,
        size: int = 1,
        buffers: BufferRule = "mean",
    ) -> None:
        self._send, self._rank, self._size, self._rule = send, rank, size, buffers
        parameters = list({id(p): p for m in models for p in m.parameters() if p.requires_grad}.values())
        self._buffers = list({id(b): b for m in models for b in m.buffers() if b.is_floating_point()}.values())
        if buffers == "local":
            self._buffers = []
        plans = plan_buckets([(p.numel(), p.dtype) for p in parameters], sum(b.numel() for b in self._buffers))
        memory = allocate(sum(_padded(p) for p in plans))
        self.buckets: list[Bucket] = []
        at = 0
        for plan in plans:
            flat = memory[at : at + plan.numel * plan.dtype.itemsize].view(plan.dtype)
            flat.fill_(0.0)
            self.buckets.append(Bucket(plan, flat, parameters))
            self.buckets[-1].flags.fill_(1.0)
            at += _padded(plan)
        self.weight = 1.0
        self._paused = self._running = False
        self._next = 0
        self._waits: list[Callable[[], None]] = []
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
                torch.autograd.Variable._execution_engine.queue_callback(self.finish)
            bucket.take(place)
            if not bucket.missing:
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
            if self.weight != 1.0:
                bucket.gradients.mul_(self.weight)
            if bucket.passengers.numel():
                self._board()
            self._waits.append(self._send(self._next, bucket.flat))
            self._next += 1

    def finish(self) -> None:
        """Send what is left, wait for all, and put the means in place. Backward calls it when it ends."""
        try:
            with torch.no_grad():
                self._launch(everything=True)
                for bucket, wait in zip(self.buckets, self._waits, strict=True):
                    wait()
                    if bucket.passengers.numel():
                        self._alight(bucket.passengers)
                    bucket.settle()
        finally:
            self._running, self._next = False, 0
            self._waits.clear()

    def _board(self) -> None:
        passengers = next(b.passengers for b in self.buckets if b.passengers.numel())
        at = 0
        for b in self._buffers:
            passengers[at : at + b.numel()] = b.detach().reshape(-1)
            at += b.numel()
        if self._rule == "broadcast":
            passengers.mul_(float(self._size) if self._rank == 0 else 0.0)

    def _alight(self, passengers: Tensor) -> None:
        at = 0
        for b in self._buffers:
            b.copy_(passengers[at : at + b.numel()].view_as(b))
            at += b.numel()


def _padded(plan: Plan) -> int:
    return -(-plan.numel * plan.dtype.itemsize // 64) * 64
