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
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stretto.codecs.base import Packed
from stretto.codecs.noise import CHUNK, Noise, still
from stretto.errors import DamagedPayload, UsageError

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Words: TypeAlias = NDArray[np.int16]

SMALLEST: Final = np.float32(2.0**-100)
"""Blocks of a smaller scale are written as 0: its inverse may be no number."""


class Scratch:
    """Memory to work in on one chunk of so many rows, each made when it is asked for; some as tensor and as array."""

    def __init__(self, blocks: int, width: int) -> None:
        self.shape = torch.Size((blocks, width))
        self.scales, self.inverse = torch.empty(blocks, 1), torch.empty(blocks, 1)
        self.measured: Floats = self.scales.view(-1).numpy()
        self.inverted: Floats = self.inverse.view(-1).numpy()

    @cached_property
    def rows(self) -> Tensor:
        return torch.empty(self.shape)

    @cached_property
    def floats(self) -> Floats:
        """The same memory as ``rows``."""
        array: Floats = self.rows.view(-1).numpy()
        return array

    @cached_property
    def bytes(self) -> Bytes:
        return np.empty(self.shape.numel(), np.uint8)

    @cached_property
    def words(self) -> Words:
        return np.empty(self.shape.numel(), np.int16)

    @cached_property
    def spare(self) -> Words:
        return np.empty(self.shape.numel(), np.int16)

    @cached_property
    def copy(self) -> Tensor:
        return torch.empty(self.shape)

    def float32(self, rows: Tensor) -> Tensor:
        """``rows`` themselves, if they are that, or a copy."""
        return rows if rows.dtype == torch.float32 else self.copy.copy_(rows)


class Span(NamedTuple):
    """One chunk: its first element, its rows, its blocks, and its bytes among the codes."""

    start: int
    rows: Tensor
    blocks: slice
    codes: slice
    room: Scratch


def spans(flat: Tensor, block: int, bits: int) -> Iterator[Span]:
    """The chunks of ``flat``, in order, in rows of a block each; those of one shape share their room."""
    whole = flat.numel() - flat.numel() % block
    chunks = [*flat[:whole].view(-1, block).split(CHUNK // block)] if whole else []
    if whole < flat.numel():
        chunks.append(flat[whole:].view(1, -1))
    start, room = 0, Scratch(0, block)
    for rows in chunks:
        if rows.shape != room.shape:
            room = Scratch(*rows.shape)
        stop = start + rows.numel()
        blocks, codes = slice(start // block, -(-stop // block)), slice(start * bits // 8, -(-stop * bits // 8))
        yield Span(start, rows, blocks, codes, room)
        start = stop


@dataclass(frozen=True)
class Blocked(Packed):
    """``block``: the elements that share a scale, a power of two from 8 to 131,072."""

    bits: ClassVar[int]
    block: int = field(default=256, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 8 <= self.block <= CHUNK or self.block & (self.block - 1):
            raise UsageError(f"block={self.block} is not a power of two from 8 to {CHUNK}")

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
        """Fill ``codes`` from ``rows`` (float32), each to be multiplied by its ``room.inverse``: ``levels / scale``.
        Of rows that are not finite anything may come."""

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
        noise, levels = self.noise(x.numel(), seed), np.float32(self.levels)
        with np.errstate(invalid="ignore"):
            for start, given, blocks, place, room in spans(x, self.block, self.bits):
                rows = room.float32(given)
                self.measure(rows, room)
                scales[blocks] = room.measured
                np.divide(levels, np.maximum(room.measured, SMALLEST), out=room.inverted)
                self.write(rows, noise.rows(start, rows), codes[place], room)

    def unpack(self, raw: Tensor, out: Tensor) -> None:
        scales = self._scales(raw, -(-out.numel() // self.block))
        codes = raw[4 * scales.numel() :].numpy()
        most = min(torch.finfo(out.dtype).max, torch.finfo(torch.float32).max)
        beyond = 2 * float(scales.max()) > most
        scaled = scales * self.unit
        for _, target, blocks, place, room in spans(out, self.block, self.bits):
            rows = target if out.dtype == torch.float32 else room.rows
            self.read(codes[place], rows, room)
            if beyond:  # rounded up it may be; then there is only the largest number
                rows.mul_(self.unit).mul_(scales[blocks]).clamp_(-most, most)
            else:
                rows.mul_(scaled[blocks])
            if rows is not target:
                target.copy_(rows)

    def _scales(self, raw: Tensor, blocks: int) -> Tensor:
        scales = raw[: 4 * blocks].clone().view(torch.float32)[:, None]
        least, most = float(scales.min()), float(scales.max())
        if not (least >= 0 and most < math.inf) and not (self.passing and math.isnan(least)):
            raise DamagedPayload(f"{self} was given scales from {least} to {most} to decode, which no agent sends")
        return scales

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
    torch.sum(torch.abs(rows, out=room.rows), 1, keepdim=True, out=room.scales).mul_(1 / rows.shape[1])
    if not room.measured.max() < np.inf:  # the sum of huge elements may be infinite where their mean is not
        room.scales.copy_(room.rows.double().mean(1, keepdim=True))
