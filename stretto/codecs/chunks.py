"""A long vector in chunks that stay in cache, and the memory to work in on one of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Words: TypeAlias = NDArray[np.int16]

CHUNK: Final = 1 << 17
"""Elements that are worked on at a time. It is part of the format: codes share a byte by their place in the chunk."""

SMALLEST: Final = np.float32(2.0**-100)
"""Blocks of a smaller scale are written as 0: its inverse may be no number."""


class Scratch:
    """Memory to work in on one chunk of so many rows, each made when it is asked for; some as tensor and as array."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    @cached_property
    def scales(self) -> Tensor:
        return torch.empty(self.shape[0], 1)

    @cached_property
    def measured(self) -> Floats:
        """The same memory as ``scales``."""
        array: Floats = self.scales.view(-1).numpy()
        return array

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
        """Words in the memory of ``rows``, for when these are done with."""
        return self.floats.view(np.int16)[: self.shape.numel()]

    @cached_property
    def copy(self) -> Tensor:
        return torch.empty(self.shape)

    def over_scales(self, value: float) -> Tensor:
        """``value`` / scale of each row; of a scale below the smallest as of that."""
        inverse = np.divide(np.float32(value), np.maximum(self.measured, SMALLEST), dtype=np.float32)
        return torch.from_numpy(inverse)[:, None]

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
    start, room = 0, Scratch(torch.Size())
    for rows in chunks:
        if rows.shape != room.shape:
            room = Scratch(rows.shape)
        stop = start + rows.numel()
        blocks, codes = slice(start // block, -(-stop // block)), slice(start * bits // 8, -(-stop * bits // 8))
        yield Span(start, rows, blocks, codes, room)
        start = stop
