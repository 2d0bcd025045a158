"""A matrix in tiles, and the frequencies of each.

Theory of operation. The tiles are at most block x block elements, as equal as they can be, the last ones filled up with
zeros. (DeMo takes the largest divisor of a dimension as the side, which of a prime is 1: a tile of one element has no
frequencies.) An orthonormal DCT-II along both sides of a tile keeps its norm. Its result is divided by twice the root
of each side, so that no sum on the way is larger than the largest element: what float32 holds has frequencies in it.

All agents must read the same bits in a payload, whatever the order in which their processors add. So the inverse adds
products of whole numbers, frequencies of 25 bits and cosines of 23: at most 256 cosines whose squares are 1 together
are at most 16 together (4 bits), and a float64 holds 53, so that nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from stretto.core import Named

TOGETHER = 65_536
FINE, BASIS, GROWTH = 25, 23, 4


class Group(NamedTuple):
    """Neighbouring tiles of a matrix: the elements [rows, columns] of it, and how many tiles there are."""

    rows: slice
    columns: slice
    tiles: int


@dataclass(frozen=True, slots=True)
class Tiling:
    """A matrix of ``rows`` x ``columns`` in tiles of ``height`` x ``width``."""

    rows: int
    columns: int
    height: int
    width: int

    @classmethod
    def of(cls, piece: Named, block: int) -> Tiling:
        """The parameter's first dimension by all others; a vector is one row."""
        rows = piece.shape[0] if len(piece.shape) > 1 else 1
        columns = piece.numel // max(1, rows)
        height, width = (math.ceil(side / max(1, math.ceil(side / block))) for side in (rows, columns))
        return cls(rows, columns, height, width)

    @property
    def tiles(self) -> int:
        return math.ceil(self.rows / self.height) * math.ceil(self.columns / self.width) if self.area else 0

    @property
    def area(self) -> int:
        """Of one tile."""
        return self.height * self.width

    def groups(self) -> Iterator[Group]:
        """All tiles, so many at once as stay in cache: some rows of them, or a part of one row."""
        if not self.area:
            return
        many = max(1, TOGETHER // self.area)
        across = math.ceil(self.columns / self.width)
        height, width = self.height * max(1, many // across), self.width * min(many, across)
        for y in range(0, self.rows, height):
            for x in range(0, self.columns, width):
                rows, columns = min(height, self.rows - y), min(width, self.columns - x)
                tiles = math.ceil(rows / self.height) * math.ceil(columns / self.width)
                yield Group(slice(y, y + rows), slice(x, x + columns), tiles)

    def frequencies(self, x: Tensor) -> Tensor:
        """[tiles, area] of a group's elements (float32)."""
        whole = pad(x, (0, -x.shape[1] % self.width, 0, -x.shape[0] % self.height))
        tiles = whole.unflatten(1, (-1, self.width)).unflatten(0, (-1, self.height))
        along = tiles @ (cosines(self.width).T / (2 * math.sqrt(self.width))).to(torch.float32)
        both: Tensor = along.permute(0, 2, 3, 1) @ (cosines(self.height).T / (2 * math.sqrt(self.height))).to(
            torch.float32
        )
        return both.reshape(-1, self.area)

    def elements(self, frequencies: Tensor, group: Group) -> Tensor:
        """Inverse of :meth:`frequencies` (float64), the same bits on every processor."""
        rows, columns = group.rows.stop - group.rows.start, group.columns.stop - group.columns.start
        exponents = torch.frexp(frequencies.abs().amax(1)).exponent - FINE
        steps = torch.from_numpy(np.ldexp(1.0, exponents.numpy()))
        whole = torch.round(frequencies / steps[:, None])
        tiles = whole.view(-1, math.ceil(columns / self.width), self.width, self.height)
        along = torch.round(tiles @ _whole(self.height) * 2.0 ** -(BASIS + GROWTH))
        both = along.permute(0, 1, 3, 2) @ _whole(self.width)
        units = steps * (4 * math.sqrt(self.area) * 2.0 ** (GROWTH - BASIS))
        scaled: Tensor = both * units.view(len(tiles), -1, 1, 1)
        return scaled.transpose(1, 2).flatten(2).flatten(0, 1)[:rows, :columns]


@lru_cache(maxsize=256)
def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II of n elements (Ahmed, Natarajan, Rao 1974), float64: row u is frequency u."""
    at = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi / n * (at + 0.5) * at[:, None]) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


@lru_cache(maxsize=256)
def _whole(n: int) -> Tensor:
    return torch.round(cosines(n) * 2.0**BASIS)
