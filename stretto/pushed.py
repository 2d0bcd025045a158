"""The parameters that servers hold, at an agent: memory for what it pushes, and for the values that come back.

Parameters lie in flat buckets, as gradients do for an average; their values are views of memory that the courier
writes, so what is pulled is where the next forward pass reads it. A table (the weight of an embedding with sparse
gradients) is a bucket of its own, of which rows are pushed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stretto.buckets import BUCKET, Room, plan_buckets
from stretto.core import Named
from stretto.errors import UsageError
from stretto.server.rules import Rule
from stretto.server.space import Extent
from stretto.session import Layout
from stretto.tables import Shelf, rows_of, tables


@dataclass(frozen=True, slots=True)
class Bucket:
    """Parameters one after the other; ``flat`` is what is pushed of them (of a table: nothing), ``values`` they are."""

    parameters: tuple[nn.Parameter, ...]
    flat: Tensor
    values: Tensor
    width: int = 0

    def cut(self, flat: Tensor) -> list[Tensor]:
        """A tensor of all its elements, by parameter."""
        pieces = torch.split(flat, [p.numel() for p in self.parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]

    def extent(self, groups: Mapping[int, int]) -> Extent:
        """What lies in it; ``groups`` knows the param groups of parameters by their ``id``."""
        dtype = str(self.values.dtype).removeprefix("torch.")
        return Extent(dtype, tuple((p.numel(), groups[id(p)]) for p in self.parameters), self.width)

    def layout(self, named: Mapping[int, Named]) -> Layout:
        """The same, for codecs; ``named`` knows parameters by their ``id``."""
        dtype = str(self.values.dtype).removeprefix("torch.")
        return Layout(self.values.numel(), tuple(named[id(p)] for p in self.parameters), dtype)


def bucket_of(parameters: tuple[nn.Parameter, ...], room: Room, width: int = 0) -> Bucket:
    """A bucket in memory from ``room``; of a table, rows of ``width``, with none for what is pushed."""
    numel, dtype = sum(p.numel() for p in parameters), parameters[0].dtype
    values = room.allocate(numel * dtype.itemsize)[: numel * dtype.itemsize].view(dtype)
    flat = values[:0] if width else room.allocate(values.nbytes)[: values.nbytes].view(dtype)
    return Bucket(parameters, flat, values, width)


class Pushed:
    """The parameters that ``optimizer`` steps, of ``models``.

    ``grow(nbytes)`` gives memory (uint8) that this agent's courier sees, and which is this agent's own.

    Raises:
        UsageError: a server cannot do what this optimizer does.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizer: Optimizer,
        room: Room,
        grow: Callable[[int], Tensor],
        most: int = BUCKET,
    ) -> None:
        self.rule = Rule.of(optimizer)
        self._optimizer, self._share = optimizer, 1.0
        self._groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        sparse = {id(p) for p in tables(models)}
        parameters = [p for p in _all(models) if id(p) in self._groups and p.requires_grad]
        dense = [p for p in parameters if id(p) not in sparse]
        plans = plan_buckets([(p.numel(), p.dtype) for p in dense], most=most)
        members = [tuple(dense[piece.parameter] for piece in plan.pieces) for plan in plans]
        rowed = [p for p in parameters if id(p) in sparse]
        self.buckets = [bucket_of(ps, room) for ps in members] + [bucket_of((p,), room, p.shape[1]) for p in rowed]
        self._shelves = {id(p): Shelf(p, grow) for p in rowed}
        self._put_aside: list[tuple[nn.Parameter, Tensor]] = []

    @property
    def extents(self) -> tuple[Extent, ...]:
        """What lies in each bucket, and in which param group."""
        return tuple(bucket.extent(self._groups) for bucket in self.buckets)

    def layouts(self, named: Mapping[int, Named]) -> list[Layout]:
        """The same, for codecs; ``named`` knows parameters by their ``id``."""
        return [bucket.layout(named) for bucket in self.buckets]

    @property
    def hyper(self) -> Tensor:
        """The optimizer's numbers, as they are now."""
        return self.rule.hyper(self._optimizer)

    @property
    def weight(self) -> float:
        """How often what is pushed next counts."""
        return self._share

    @property
    def due(self) -> bool:
        """Every step is pushed."""
        return True

    @property
    def left(self) -> bool:
        """Nothing that was trained is kept back."""
        return False

    def weigh(self, share: float) -> None:
        """A batch is being trained that counts so many times."""
        self._share = share

    def trained(self) -> None: ...

    def land(self) -> None:
        """Values came: the parameters are these."""

    def adopt(self) -> None: ...

    def shared(self) -> dict[int, Tensor]:
        """Parameters are what all have."""
        return {}

    @torch.no_grad()
    def move_in(self) -> None:
        """From now on the parameters lie in the courier's memory."""
        for bucket in self.buckets:
            for p, values in zip(bucket.parameters, bucket.cut(bucket.values), strict=True):
                values.copy_(p)
                p.data = values

    @torch.no_grad()
    def take(self) -> list[tuple[Tensor, ...]]:
        """What is to be pushed, by bucket; until :meth:`give_back` parameters have no gradients."""
        parts: list[tuple[Tensor, ...]] = []
        for bucket in self.buckets:
            if bucket.width:
                parts.append(self._rows(*bucket.parameters))
            else:
                for p, flat in zip(bucket.parameters, bucket.cut(bucket.flat), strict=True):
                    _take(p, flat)
                parts.append((bucket.flat,))
            for p in bucket.parameters:
                if p.grad is not None:
                    self._put_aside.append((p, p.grad))
                    p.grad = None
        return parts

    def _rows(self, table: nn.Parameter) -> tuple[Tensor, ...]:
        """What was found of some rows."""
        if table.grad is None:
            return ()
        rows = self._shelves[id(table)].put(rows_of(table.grad))
        return rows.rows, rows.values.reshape(-1)

    def give_back(self) -> None:
        """Gradients are where they were."""
        for p, grad in self._put_aside:
            p.grad = grad
        self._put_aside.clear()

    @property
    def finite(self) -> bool:
        return all(bool(bucket.values.isfinite().all()) for bucket in self.buckets)


def _take(p: nn.Parameter, flat: Tensor) -> None:
    if p.grad is None:
        flat.zero_()
    elif p.grad.is_sparse:
        raise UsageError("a sparse gradient of a parameter that is no embedding's: servers know tables of embeddings")
    else:
        flat.copy_(p.grad)


def _all(models: Sequence[nn.Module]) -> list[nn.Parameter]:
    return list({id(p): p for model in models for p in model.parameters()}.values())
