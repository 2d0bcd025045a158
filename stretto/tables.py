"""Tables: embeddings whose gradients are of some rows only, which leave as rows.

    gradient (sparse, rows as they were looked up) ─ rows_of: each once, ascending ─ Shelf: where the courier sees them

A table is a parameter that only ``nn.Embedding`` or ``nn.EmbeddingBag`` with ``sparse=True`` hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from stretto.errors import UsageError
from stretto.server import Rows

_FEWEST: Final = 256
"""Rows that there is room for at first, where the table has so many."""


def tables(models: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The parameters of all ``models`` whose gradients are sparse, each once, in the order of modules.

    >>> model = nn.Sequential(nn.EmbeddingBag(10, 4, sparse=True), nn.Linear(4, 2))
    >>> [tuple(p.shape) for p in tables([model])]
    [(10, 4)]

    Raises:
        UsageError: a module has one that would not stay sparse, or changes rows that no gradient speaks of.
    """
    found: dict[int, tuple[str, nn.Parameter]] = {}
    others: dict[int, str] = {}
    for model in models:
        for path, module in model.named_modules():
            for name, p in module.named_parameters(recurse=False):
                if _sparse(module, path):
                    found.setdefault(id(p), (path or "the model", p))
                else:
                    others.setdefault(id(p), f"{path}.{name}" if path else name)
    for key, (path, _) in found.items():
        if key in others:
            raise UsageError(
                f"{path} has sparse gradients and shares its weight as {others[key]}, whose gradients are not; "
                f"give {path} sparse=False"
            )
    return [p for _, p in found.values() if p.requires_grad]


def _sparse(module: nn.Module, path: str) -> bool:
    if not isinstance(module, nn.Embedding | nn.EmbeddingBag) or not module.sparse:
        return False
    if module.max_norm is not None:
        raise UsageError(
            f"{path or 'the model'} has max_norm={module.max_norm:g}, which changes rows when they are looked up, and "
            "no server hears of it: leave max_norm out, or sparse=True"
        )
    return True


def rows_of(gradient: Tensor) -> Rows:
    """What a sparse gradient ``[rows, width]`` says: each row that it speaks of once, in ascending order.

    What several lookups say of one row is added up, as ``coalesce`` does. Nothing is copied where that was done before.

    Raises:
        UsageError: it is not sparse, or not by rows.
    """
    if not gradient.is_sparse or gradient.sparse_dim() != 1 or gradient.dense_dim() != 1:
        raise UsageError(
            f"the gradient of a table {list(gradient.shape)} is not of some rows: something else than its embedding "
            "uses it; give the embedding sparse=False"
        )
    coalesced = gradient.detach().coalesce()
    return Rows(coalesced.indices()[0], coalesced.values())


class Shelf:
    """Memory that the courier sees, for as many rows of one table as there ever were at once.

    It grows to twice what it was, and never beyond the ``table``: with what it had before, which is not given back, it
    takes at most four times what it needs.

    Args:
        allocate: ``allocate(nbytes)`` gives memory (uint8) that the courier sees. How often, and of what size, is this
            agent's own: it must not be memory that all agents have alike.
    """

    def __init__(self, table: Tensor, allocate: Callable[[int], Tensor]) -> None:
        self._height, self._width = table.shape
        self._dtype, self._allocate = table.dtype, allocate
        self._rows, self._values = torch.empty(0, dtype=torch.int64), torch.empty(0, self._width, dtype=self._dtype)

    def put(self, update: Rows) -> Rows:
        """A copy of ``update`` here; the one before is lost."""
        count = len(update.rows)
        if count > len(self._rows):
            self._grow(min(self._height, max(count, 2 * len(self._rows), _FEWEST)))
        held = Rows(self._rows[:count], self._values[:count])
        held.rows.copy_(update.rows)
        held.values.copy_(update.values)
        return held

    def _grow(self, count: int) -> None:
        row = self._width * self._dtype.itemsize
        memory = self._allocate(count * (8 + row))
        self._rows = memory[: 8 * count].view(torch.int64)
        self._values = memory[8 * count : count * (8 + row)].view(self._dtype).view(count, self._width)
