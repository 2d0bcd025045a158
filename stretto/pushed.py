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
        self._optimizer, self._room = optimizer, room
        self._groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        sparse = {id(p) for p in tables(models)}
        parameters = [p for p in _all(models) if id(p) in self._groups and p.requires_grad]
        dense = [p for p in parameters if id(p) not in sparse]
        plans = plan_buckets([(p.numel(), p.dtype) for p in dense], most=most)
        members = [tuple(dense[piece.parameter] for piece in plan.pieces) for plan in plans]
        rowed = [p for p in parameters if id(p) in sparse]
        self.buckets = [self._bucket(ps) for ps in members] + [self._bucket((p,), p.shape[1]) for p in rowed]
        self._shelves = {id(p): Shelf(p, grow) for p in rowed}
        self._put_aside: list[tuple[nn.Parameter, Tensor]] = []

    def _bucket(self, parameters: tuple[nn.Parameter, ...], width: int = 0) -> Bucket:
        numel, dtype = sum(p.numel() for p in parameters), parameters[0].dtype
        values = self._room.allocate(numel * dtype.itemsize)[: numel * dtype.itemsize].view(dtype)
        flat = values[:0] if width else self._room.allocate(values.nbytes)[: values.nbytes].view(dtype)
        return Bucket(parameters, flat, values, width)

    @property
    def extents(self) -> tuple[Extent, ...]:
        """What lies in each bucket, and in which param group."""
        return tuple(
            Extent(
                str(b.values.dtype).removeprefix("torch."),
                tuple((p.numel(), self._groups[id(p)]) for p in b.parameters),
                b.width,
            )
            for b in self.buckets
        )

    def layouts(self, named: Mapping[int, Named]) -> list[Layout]:
        """The same, for codecs; ``named`` knows parameters by their ``id``."""
        return [
            Layout(
                b.values.numel(),
                tuple(named[id(p)] for p in b.parameters),
                str(b.values.dtype).removeprefix("torch."),
            )
            for b in self.buckets
        ]

    @property
    def hyper(self) -> Tensor:
        """The optimizer's numbers, as they are now."""
        return self.rule.hyper(self._optimizer)

    @torch.no_grad()
    def move_in(self) -> None:
        """From now on the parameters lie in the courier's memory."""
        for bucket in self.buckets:
            for p, values in zip(bucket.parameters, _cut(bucket, bucket.values), strict=True):
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
                for p, flat in zip(bucket.parameters, _cut(bucket, bucket.flat), strict=True):
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


def _cut(bucket: Bucket, flat: Tensor) -> list[Tensor]:
    pieces = torch.split(flat, [p.numel() for p in bucket.parameters])
    return [piece.view_as(p) for piece, p in zip(pieces, bucket.parameters, strict=True)]


def _all(models: Sequence[nn.Module]) -> list[nn.Parameter]:
    return list({id(p): p for model in models for p in model.parameters()}.values())
