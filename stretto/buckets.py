"""Flat buckets: what travels, and what rides along.

    bucket = elements of parameters │ one flag a parameter │ weight │ wish │ (last bucket) buffers

The parameters of a model are laid out in a few flat tensors, in the reverse of their order. What an agent sends counts
``weight`` times, and the mean weight comes back with the mean: where not all that were counted on took part, the mean
is divided by it, and is the exact mean of those who did. A wish of anybody's reaches all in the same round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from stretto.core import Named
from stretto.errors import UsageError
from stretto.session import Closing, Layout

BUCKET = 4 << 20
"""Bytes of parameters that fill a bucket."""

BufferRule: TypeAlias = Literal["mean", "broadcast", "local"]


@dataclass(frozen=True, slots=True)
class Room:
    """Where buckets lie, and what rides in them.

    Attributes:
        allocate: ``allocate(nbytes)`` gives zeroed memory (uint8) that the courier sees.
        apart: may what is sent and its mean not be the same memory?
        buffers: what becomes of floating-point buffers.
        leads: is this agent the one whose buffers all others take (rule ``"broadcast"``)?
    """

    allocate: Callable[[int], Tensor]
    apart: bool = False
    buffers: BufferRule = "mean"
    leads: Callable[[], bool] = lambda: True


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

    def cut(self, elements: Tensor) -> Sequence[Tensor]:
        """``elements`` of the whole bucket (1-d), by parameter."""
        return torch.split(elements, [p.numel() for p in self.parameters])

    @property
    def leaving(self) -> Tensor:
        """The elements that leave."""
        return self._cut(self.flat)[0]

    @property
    def passengers(self) -> Tensor:
        """Room for what rides along."""
        return self._cut(self.flat)[4]

    @property
    def elements(self) -> Tensor:
        """What became of the parameters' elements."""
        return self._cut(self.mean)[0]

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
            raise UsageError(
                f"the gradient of a table {list(parameter.shape)} is sparse, and only a server takes rows: "
                "take a server strategy, such as asp(), or Embedding(sparse=False)"
            )
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

    def settle(self, closing: Closing | None = None) -> tuple[Tensor, list[float]]:
        """After the exchange: the passengers' mean, none where nobody's samples are in it; and the flags'."""
        elements, flags, weight, _, passengers = self._cut(self.mean)
        if closing is not None and not closing.whole:
            share = float(weight)
            if share > 0:
                elements.div_(share)
                passengers.div_(share)
            else:  # those who took part had no samples: nothing moves
                passengers = passengers[:0]
        used = flags.tolist()
        self.flags.fill_(1.0)
        self.arrived = [False] * len(self.views)
        self.missing = len(self.views)
        return passengers, used


class Passengers:
    """The floating-point buffers of models, which ride in the last bucket by the rule of ``room``.

    ``counts``: single whole numbers ride, too, for where agents count apart; their mean is rounded.
    """

    def __init__(self, models: Sequence[nn.Module], room: Room, *, counts: bool = False) -> None:
        rule, self._leads = room.buffers, room.leads
        self._rule = rule
        found = {id(b): b for m in models for b in m.buffers()}.values()
        self._buffers = [
            b for b in found if b.is_floating_point() or (counts and b.dtype == torch.int64 and not b.dim())
        ]
        if rule == "local":
            self._buffers = []
        self._agreed: Tensor | None = None

    @property
    def numel(self) -> int:
        riding = sum(b.numel() for b in self._buffers)
        return riding + (self._rule == "broadcast" and riding > 0)  # whether the first one's are there

    def board(self, room: Tensor) -> None:
        if not room.numel():
            return
        at = 0
        for b in self._buffers:
            room[at : at + b.numel()] = b.detach().reshape(-1)
            at += b.numel()
        if self._rule == "broadcast":
            room[at] = 1.0
            if not self._leads():
                room.zero_()

    def alight(self, mean: Tensor) -> None:
        if not mean.numel():
            return
        if self._rule == "broadcast":
            self._keep_the_first_ones(mean)
            if self._agreed is None:
                return
            mean = self._agreed
        at = 0
        for b in self._buffers:
            x = mean[at : at + b.numel()].view_as(b)
            b.copy_(x if b.is_floating_point() else x.round())
            at += b.numel()

    def _keep_the_first_ones(self, mean: Tensor) -> None:
        """Where the first agent died on the way nothing came; all keep what they had from it last."""
        rode = float(mean[-1])
        if rode > 0:
            self._agreed = mean / rode


def trainable(models: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The parameters of all ``models``, each once."""
    return list({id(p): p for m in models for p in m.parameters() if p.requires_grad}.values())


def buckets_of(parameters: Sequence[nn.Parameter], riding: int, room: Room, most: int = BUCKET) -> list[Bucket]:
    """These parameters in buckets of about ``most`` bytes, with ``riding`` elements more."""
    plans = plan_buckets([(p.numel(), p.dtype) for p in parameters], riding, most)
    flats = _laid_out(plans, room.allocate)
    means = _laid_out(plans, room.allocate) if room.apart else [None] * len(plans)
    return [Bucket(p, f, parameters, m) for p, f, m in zip(plans, flats, means, strict=True)]


def layouts(buckets: Sequence[Bucket], named: Mapping[int, Named]) -> list[Layout]:
    """What lies in each bucket; ``named`` knows parameters by their ``id``."""
    return [
        Layout(
            b.plan.gradients,
            tuple(named[id(p)] for p in b.parameters),
            str(b.plan.dtype).removeprefix("torch."),
        )
        for b in buckets
    ]


def _laid_out(plans: Sequence[Plan], allocate: Callable[[int], Tensor]) -> list[Tensor]:
    memory = allocate(sum(_padded(p) for p in plans))
    flats, at = [], 0
    for plan in plans:
        flats.append(memory[at : at + plan.numel * plan.dtype.itemsize].view(plan.dtype).zero_())
        at += _padded(plan)
    return flats


def _padded(plan: Plan) -> int:
    return -(-plan.numel * plan.dtype.itemsize // 64) * 64
