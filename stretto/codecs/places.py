"""Some of n elements: gathered, scattered, and written in two bytes each.

A tensor is cut into blocks of 65,536 elements, which stay in cache, and in which a place takes 16 bits. On the wire are
the places and how many there are in each block (4 bytes), or one bit per element where that is less; and the last 4
bytes always say how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stretto.errors import DamagedPayload

BLOCK = 65_536
COUNT = 4

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Integers: TypeAlias = npt.NDArray[Any]
Where: TypeAlias = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Places:
    """Some of ``n`` elements: for each block, ascending, where in it (uint16)."""

    n: int
    blocks: list[Where]

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def gather(self, flat: Tensor, into: Tensor | None = None) -> Tensor:
        """The elements of ``flat`` that stand there, in its dtype (which is that of ``into``)."""
        out, at = flat.new_empty(len(self)) if into is None else into, 0
        bits = bits_of(out)
        for block, where in zip(cut(bits_of(flat)), self.blocks, strict=False):
            bits[at : at + len(where)] = block[where]
            at += len(where)
        return out

    def scatter(self, values: Tensor, out: Tensor) -> None:
        """Write ``values`` there, into ``out`` of their dtype."""
        bits, at = bits_of(values), 0
        for block, where in zip(cut(bits_of(out)), self.blocks, strict=True):
            block[where] = bits[at : at + len(where)]
            at += len(where)

    def write(self, k: int, into: Tensor) -> None:
        """Say these, which are at most k, in ``into``: uint8, :func:`nbytes` of n and k."""
        out = into.numpy()
        if _as_bits(self.n, k):
            for block, where in zip(cut(out[:-COUNT], BLOCK // 8), self.blocks, strict=True):
                mask = np.zeros(8 * len(block), np.bool_)
                mask[where] = True
                block[:] = np.packbits(mask, bitorder="little")
            out[-COUNT:] = np.array([len(self)], "<u4").view(np.uint8)
        elif self.n:
            end, tail = 2 * len(self), COUNT * len(self.blocks)
            out[:end] = np.concatenate(self.blocks).astype("<u2", copy=False).view(np.uint8)
            out[end:-tail] = 0
            out[-tail:] = np.array([*map(len, self.blocks[:-1]), len(self)], "<u4").view(np.uint8)


def nbytes(n: int, k: int) -> int:
    """How many bytes at most k places of n take."""
    return min(2 * k + COUNT * math.ceil(n / BLOCK), math.ceil(n / 8) + COUNT) if n else 0


def count(raw: Tensor) -> int:
    """How many places :meth:`Places.write` wrote, by the last bytes (none by an empty vector)."""
    return int.from_bytes(raw[-COUNT:].numpy().tobytes(), "little")


def read(raw: Tensor, n: int, k: int, codec: Any) -> Places:
    """What :meth:`Places.write` wrote; ``raw`` has the right length.

    Raises:
        DamagedPayload: these are not at most k ascending places of n.
    """
    total = count(raw)
    if total > k:
        raise DamagedPayload(f"{codec} was given {total} places instead of at most {k}")
    blocks = (_from_bits if _as_bits(n, k) else _from_counts)(raw.numpy(), n, total)
    if blocks is None or sum(map(len, blocks)) != total or not _within(blocks, n):
        raise DamagedPayload(f"{codec} was given places that are not {total} ascending ones of {n}")
    return Places(n, blocks)


def _as_bits(n: int, k: int) -> bool:
    return nbytes(n, k) < 2 * k + COUNT * math.ceil(n / BLOCK)


def _within(blocks: list[Where], n: int) -> bool:
    return all((block[-1:] < n - BLOCK * (len(blocks) - 1)).all() for block in blocks[-1:])


def _from_bits(raw: Integers, n: int, total: int) -> list[Where] | None:
    blocks = cut(raw[:-COUNT], BLOCK // 8)
    return [np.flatnonzero(np.unpackbits(block, bitorder="little")).astype(np.uint16) for block in blocks]


def _from_counts(raw: Integers, n: int, total: int) -> list[Where] | None:
    blocks = math.ceil(n / BLOCK)
    at = len(raw) - COUNT * blocks
    within = raw[:at].copy().view("<u2").astype(np.uint16, copy=False)
    ends = [0, *np.cumsum(raw[at : len(raw) - COUNT].copy().view("<u4"), dtype=np.int64).tolist(), total]
    rises = within[1:] > within[:-1]
    rises[[end - 1 for end in ends if 0 < end < len(within)]] = True
    if ends[-2] > total or not rises[: max(0, total - 1)].all() or within[total:].any():
        return None
    return [within[a:b] for a, b in pairwise(ends)] if n else []


def cut(flat: Integers, size: int = BLOCK) -> Iterator[Integers]:
    return (flat[at : at + size] for at in range(0, len(flat), size))


def bits_of(flat: Tensor) -> Integers:
    """The same memory as whole numbers: numpy knows no bfloat16."""
    return flat.view(_INTEGERS[flat.dtype.itemsize]).numpy()
