"""The largest frequencies travel: what is smooth in a matrix of momentum takes few of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.base import not_finite
from stretto.codecs.sparse import Selected, Selecting, check_fraction, finite, flattened, fraction_of, norm
from stretto.codecs.tiles import Group, Tiling
from stretto.core import Like, State
from stretto.errors import DamagedPayload, UsageError
from stretto.text import named


@named("dct_topk", kind="codec")
@dataclass(frozen=True)
class DctTopK(Selecting):
    """The ``fraction`` of the frequencies with the largest magnitudes of each tile of each matrix, at least one.

    ``block`` is the longest side of a tile. With ``nonfinite="pass"`` a tile with NaN or infinity comes out as NaN.

    Peng, Quesnelle, Kingma: DeMo: Decoupled momentum optimization, 2024, section 3 and its code.

    Raises:
        UsageError: ``fraction`` is not above 0 and at most 1, or ``block`` not from 1 to 256.
    """

    paper: ClassVar[str] = "Peng et al. 2024, DeMo (arXiv 2411.19870), section 3"
    when: ClassVar[str] = "momentum is exchanged, over a slow network"

    fraction: float = 0.01
    block: int = field(default=64, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.fraction, self)
        if not 1 <= self.block <= 256:
            raise UsageError(f"{self}: block must be from 1 to 256, so that two bytes say where in a tile")

    def dtype(self, like: Like) -> torch.dtype:
        return torch.float32

    def slots(self, like: Like) -> int:
        return sum(t.tiles * self._each(t) for t in self._tilings(like))

    def room(self, like: Like) -> int:
        return 2 * self.slots(like)

    def select(self, x: Tensor, like: Like, state: State) -> Selected:
        flat, n = flattened(x, like.dtype), self.slots(like)
        selected = Selected.of(n, torch.float32, self.room(like), state)
        values, where = selected.values, selected.where.numpy().view("<u2")
        for matrix, tiling, group, slots in self._walk(flat, like):
            tile = matrix[group.rows, group.columns].to(torch.float32)
            if self.nonfinite == "raise" and not finite(tile):
                raise not_finite(flat, like, self)
            found = tiling.frequencies(tile)
            largest = found.abs().topk(self._each(tiling), sorted=False).indices.sort().values
            values[slots] = found.gather(1, largest).flatten()
            where[slots] = largest.flatten().numpy()
        return selected

    def place(self, values: Tensor, where: Tensor, like: Like, state: State) -> Tensor:
        out, most = torch.empty(like.numel, dtype=like.dtype), torch.finfo(like.dtype).max
        places = where.numpy().view("<u2")
        for matrix, tiling, group, slots in self._walk(out, like):
            at = torch.from_numpy(places[slots].astype(np.int64)).view(group.tiles, -1)
            if (at >= tiling.area).any() or (at.diff() <= 0).any():
                raise DamagedPayload(f"{self} was given frequencies that do not ascend, or not below {tiling.area}")
            found = torch.zeros(group.tiles, tiling.area).scatter_(1, at, values[slots].view(group.tiles, -1))
            matrix[group.rows, group.columns] = tiling.elements(found, group).clamp_(-most, most)
        return out.view(like.shape)

    def bound(self, x: Tensor) -> float:
        """No others of a tile weigh more than the largest; and what is rounded, or below what a float can hold."""
        number = torch.finfo(x.dtype)
        small = torch.finfo(torch.float32).tiny + number.smallest_normal * number.eps
        return (math.sqrt(1 - self.fraction) + 1e-5 + number.eps) * norm(x) + math.sqrt(x.numel()) * small

    def _tilings(self, like: Like) -> Iterator[Tiling]:
        return (Tiling.of(piece, self.block) for piece in like.pieces)

    def _each(self, tiling: Tiling) -> int:
        return fraction_of(tiling.area, self.fraction)

    def _walk(self, flat: Tensor, like: Like) -> Iterator[tuple[Tensor, Tiling, Group, slice]]:
        """All groups of tiles, in order: the matrix they are of, and which of the values are theirs."""
        slot = at = 0
        for tiling in self._tilings(like):
            matrix = flat[at : at + tiling.rows * tiling.columns].view(tiling.rows, tiling.columns)
            at += matrix.numel()
            for group in tiling.groups():
                slots = slice(slot, slot + group.tiles * self._each(tiling))
                slot = slots.stop
                yield matrix, tiling, group, slots
