"""A scale for each block of elements, a few bits for each element: the frame of the codecs that quantise.

Theory of operation. A block's *scale* is the largest or the mean magnitude of its elements; an element is written as a
code for a multiple of it. A payload is::

    scale of each block, float32 │ codes

and the work is done in chunks of 131,072 elements, with one scratch that is used again and again. Whatever is done to
a chunk after its first reading is done in cache: an encode reads its input from memory once and writes its payload
once. NaN and infinity cost no pass of their own: they make the scale of their block NaN or infinite. An unfinished
block at the end is a chunk of its own, of one short block.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.base import Packed
from stretto.codecs.chunks import SMALLEST, Bytes, Floats, Scratch, spans
from stretto.codecs.noise import Noise, still
from stretto.errors import DamagedPayload, UsageError

LARGEST: Final = 1 << 14
"""Elements of a block. Sums of more would depend on the number of threads."""


@dataclass(frozen=True)
class Blocked(Packed):
    """Any shape and floating dtype in; a payload of ``size`` bytes exactly, four of them for each block.

    ``block``: the elements that share a scale, a power of two from 8 to 16,384.
    """

    bits: ClassVar[int]
    block: int = field(default=256, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 8 <= self.block <= LARGEST or self.block & (self.block - 1):
            raise UsageError(f"block={self.block} is not a power of two from 8 to {LARGEST}")

    @property
    @abstractmethod
    def levels(self) -> float:
        """What an element of the magnitude of its scale is before it is cut to a code."""

    @property
    def unit(self) -> float:
        """What 1 is worth, in scales, of what :meth:`read` fills in. No code may be worth more than two scales."""
        return 1 / self.levels

    @abstractmethod
    def measure(self, rows: Tensor, room: Scratch) -> None:
        """Fill ``room.scales`` with the scale of each row: not finite if the row is not."""

    @abstractmethod
    def write(self, rows: Tensor, noise: Tensor, codes: Bytes, room: Scratch) -> None:
        """Fill ``codes`` from ``rows`` (float32) of ``room.scales``. Of rows that are not finite anything may come."""

    @abstractmethod
    def read(self, codes: Bytes, rows: Tensor, room: Scratch) -> None:
        """Fill ``rows`` (float32) with what the codes stand for."""

    @abstractmethod
    def lost(self, rows: Tensor, scales: Tensor) -> Tensor:
        """The most that the squares of what is lost of each row (float64) can sum up to."""

    def noise(self, n: int, seed: int) -> Noise:
        """What is added to an element before it is cut to a code."""
        return still(0.0)

    def nbytes(self, n: int) -> int:
        return 4 * -(-n // self.block) + -(-n * self.bits // 8)

    def pack(self, x: Tensor, out: Tensor, seed: int) -> bool:
        scales = np.empty(-(-x.numel() // self.block), np.float32)
        codes = out[scales.nbytes :].numpy()
        self._fill(x, scales, codes, seed)
        bad = ~np.isfinite(scales)
        finite = not bad.any()
        if not finite and self.passing:
            self._fill(x.nan_to_num(0.0, 0.0, 0.0), scales, codes, seed)
            scales[bad] = np.nan
        scales[scales < SMALLEST] = 0
        out[: scales.nbytes].numpy()[:] = scales.view(np.uint8)
        return finite

    def _fill(self, x: Tensor, scales: Floats, codes: Bytes, seed: int) -> None:
        noise = self.noise(x.numel(), seed)
        with np.errstate(invalid="ignore"):
            for start, given, blocks, place, room in spans(x, self.block, self.bits):
                rows = room.float32(given)
                self.measure(rows, room)
                scales[blocks] = room.measured
                self.write(rows, noise.rows(start, rows), codes[place], room)

    def unpack(self, raw: Tensor, out: Tensor) -> None:
        scales, largest = self._scales(raw, -(-out.numel() // self.block))
        codes = raw[4 * scales.numel() :].numpy()
        most = min(torch.finfo(out.dtype).max, torch.finfo(torch.float32).max)
        beyond = 2 * largest > most
        scaled = scales * self.unit
        for _, target, blocks, place, room in spans(out, self.block, self.bits):
            rows = target if out.dtype == torch.float32 else room.rows
            self.read(codes[place], rows, room)
            if beyond:  # what was rounded up may be; then there is only the largest number
                rows.mul_(self.unit).mul_(scales[blocks]).clamp_(-most, most)
            else:
                rows.mul_(scaled[blocks])
            if rows is not target:
                target.copy_(rows)

    def _scales(self, raw: Tensor, blocks: int) -> tuple[Tensor, float]:
        """The scale of each block, and the largest, NaN aside."""
        scales = raw[: 4 * blocks].clone().view(torch.float32)[:, None]
        known = scales.nan_to_num(0.0, math.inf, -math.inf) if self.passing else scales
        least, most = float(known.min()), float(known.max())
        if not (least >= 0 and most < math.inf):
            raise DamagedPayload(f"{self} was given scales from {least} to {most} to decode, which no agent sends")
        return scales, most

    def bound(self, x: Tensor) -> float:
        total = 0.0
        for _, given, _, _, room in spans(x.detach().reshape(-1), self.block, self.bits):
            rows = room.float32(given)
            self.measure(rows, room)
            wide, scales = rows.double(), room.scales.double()
            all_of_it = wide.square().sum(1, keepdim=True)
            total += float(self.lost(wide, scales).where(scales >= float(SMALLEST), all_of_it).sum())
        return math.sqrt(total) * (1 + 1e-4)


def magnitudes(rows: Tensor, room: Scratch) -> None:
    """The largest magnitude of each row as its scale."""
    torch.amax(torch.abs(rows, out=room.rows), 1, keepdim=True, out=room.scales)


def means(rows: Tensor, room: Scratch) -> None:
    """The mean magnitude of each row as its scale."""
    torch.sum(torch.abs(rows, out=room.rows), 1, keepdim=True, out=room.scales)
    np.multiply(room.measured, np.float32(1 / rows.shape[1]), out=room.measured)
    if not np.maximum.reduce(room.measured) < np.inf:  # sums of huge elements may be infinite where their mean is not
        room.scales.copy_(room.rows.double().mean(1, keepdim=True))
