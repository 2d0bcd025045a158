"""What is added to a number before it is cut to a whole one: a half, to round it, or noise, to round it without bias.

If u is uniform in [0, 1), then floor(y + u) is y on average. Drawing u afresh for each of millions of elements would
cost more than all else together, so a table is drawn for every encode, and each chunk reads it from another place,
which is drawn too: each element's u is exactly uniform over draws, and those of one chunk are independent of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.chunks import CHUNK

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
            return self.table[:, : like.shape[1]]
        at = self.places[start // CHUNK] + start % CHUNK
        return self.table[at : at + like.numel()].view(like.shape)


def still(value: float, width: int = 1) -> Noise:
    """The same for every element."""
    return Noise(torch.full((1, width), value))


def uniform(least: float, n: int, seed: int) -> Noise:
    """Uniform in [least, least + 1), in steps of 2⁻¹⁶, for ``n`` elements.

    But for the last 2⁻¹², so that no rounding error carries a whole number to the next: a bias of 2⁻²⁵.
    """
    source, size = np.random.SFC64(seed), _size(n)
    table = torch.from_numpy(source.random_raw(-(-size // 4)).view(np.uint16)[:size].astype(np.float32))
    table.mul_(2.0**-16).add_(least + 2.0**-17).clamp_(max=least + 1 - 2.0**-12)
    return Noise(table, _places(n, source))


def integers(bits: int, n: int, seed: int) -> Noise:
    """Whole numbers (int32) of so many bits, for ``n`` elements."""
    source, size = np.random.SFC64(seed), _size(n)
    table = source.random_raw(-(-size // 2)).view(np.uint32)[:size] >> (32 - bits)
    return Noise(torch.from_numpy(table.view(np.int32)), _places(n, source))


def _size(n: int) -> int:
    return n if n <= CHUNK else CHUNK + SLACK


def _places(n: int, source: np.random.SFC64) -> tuple[int, ...]:
    return tuple((source.random_raw(-(-n // CHUNK)) % SLACK).tolist()) if n > CHUNK else (0,)
