"""What is added to a number before it is cut to a whole one: a half, to round it, or noise, to round it without bias.

If u is uniform in [0, 1), then floor(y + u) is y on average. Drawing u afresh for each of millions of elements would
cost more than all else together, so a table is drawn for every encode, and each chunk reads it from another place,
which is drawn too: each element's u is exactly uniform over draws, and those of one chunk are independent of another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

CHUNK: Final = 1 << 17
"""Elements that are worked on at a time. It is part of the format: codes share a byte by their place in the chunk."""

SLACK: Final = 4096
"""Places at which a chunk may begin to read the table."""


@dataclass(frozen=True)
class Noise:
    """A table, and the place in it of each chunk; without places one row of it is for all."""

    table: Tensor
    places: tuple[int, ...] = ()

    def rows(self, start: int, like: Tensor) -> Tensor:
        """For the elements from ``start`` on, in the shape of ``like``, or one row for all of its rows."""
        if not self.places:
            return self.table if self.table.shape[1] == like.shape[1] else self.table[:, : like.shape[1]]
        at = self.places[start // CHUNK] + start % CHUNK
        return self.table[at : at + like.numel()].view(like.shape)


def still(value: float, width: int = 1) -> Noise:
    """The same for every element."""
    return Noise(torch.full((1, width), value))


def uniform(least: float, n: int, seed: int) -> Noise:
    """Uniform in [least, least + 1), for ``n`` elements.

    But for the last 2⁻¹², so that no rounding error carries a whole number to the next: a bias of 2⁻²⁵.
    """
    most = least + 1 - 2.0**-12
    return _drawn(n, seed, lambda size, by: torch.rand(size, generator=by).add_(least).clamp_(max=most))


def integers(end: int, n: int, seed: int) -> Noise:
    """Whole numbers (int32) from 0 to below ``end``, for ``n`` elements."""
    return _drawn(n, seed, lambda size, by: torch.randint(end, (size,), generator=by, dtype=torch.int32))


def _drawn(n: int, seed: int, table: Callable[[int, torch.Generator], Tensor]) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    if n <= CHUNK:
        return Noise(table(n, generator), (0,))
    places = torch.randint(SLACK, (-(-n // CHUNK),), generator=generator)
    return Noise(table(CHUNK + SLACK, generator), tuple(places.tolist()))
