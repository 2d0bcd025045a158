"""Where the largest elements stand, exactly, in one pass.

Theory of operation. Magnitudes are compared as the bits of a number without its sign: they are in the order of the
numbers, and infinity and NaN lie above all of them, so that one comparison finds what is large and what is not finite.

Whatever reaches a threshold is put down; whenever that is clearly more than k, all but the k largest are forgotten, and
the threshold rises above the smallest of these. This is exact from any threshold that k elements reach (1 is one that
all but zeros do, and these need not travel), and quick from one that few others do: a sample guesses it. A block stays
in cache, so that memory is read once: a comparison and a search of its result are what the time goes to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.places import BLOCK, Integers, Places, Where, bits_of, cut
from stretto.codecs.strata import strata

SAMPLE = 16_384


def magnitude(value: float, dtype: torch.dtype) -> int:
    """The bits of the smallest number of ``dtype`` that is no less than a positive ``value``."""
    nearest = torch.tensor([value], dtype=dtype)
    return int(bits_of(nearest)[0]) + (nearest.item() < value)


def reaching(least: int, flat: Tensor, k: int) -> Places:
    """Where the magnitude of ``flat`` has at least the bits ``least``; of more than k, where the k largest are.

    Of equal ones the first.
    """
    found: list[Where] = []
    held, mask = 0, np.empty(BLOCK, np.bool_)
    for sizes in _magnitudes(flat):
        here = mask[: len(sizes)]
        np.greater_equal(sizes, sizes.dtype.type(least), out=here)
        found.append(np.flatnonzero(here).astype(np.uint16))
        held += len(found[-1])
        if held > k + max(k // 4, BLOCK):
            found, least = _largest(Places(flat.numel(), found), k, flat)
            held = k
    return Places(flat.numel(), _largest(Places(flat.numel(), found), k, flat)[0] if held > k else found)


def guess(flat: Tensor, k: int, seed: int, margin: float) -> int:
    """The bits that about k magnitudes reach: by a sample, k and ``margin`` standard deviations more."""
    if flat.numel() <= 4 * SAMPLE:
        return 1
    sizes = _unsigned(bits_of(flat[next(strata(flat.numel(), SAMPLE, seed)).at]))
    hits = SAMPLE * k / flat.numel()
    rank = math.ceil(hits + margin * math.sqrt(hits + 1))
    return max(1, int(np.partition(sizes, SAMPLE - rank)[SAMPLE - rank])) if rank <= SAMPLE else 1


def _largest(places: Places, k: int, flat: Tensor) -> tuple[list[Where], int]:
    """The k of the places with the largest magnitudes, and what exceeds the smallest of them."""
    sizes = _unsigned(bits_of(places.gather(flat)))
    least = np.partition(sizes, len(sizes) - k)[len(sizes) - k]
    keep = sizes >= least
    _forget_last(sizes == least, int(np.count_nonzero(keep)) - k, keep)
    ends = np.cumsum([0, *map(len, places.blocks)])
    kept = [where[keep[a:b]] for where, (a, b) in zip(places.blocks, pairwise(ends), strict=True)]
    return kept, int(least) + 1


def _forget_last(mask: Integers, count: int, keep: Integers) -> None:
    """Clear ``keep`` where the last ``count`` of ``mask`` are."""
    for m, k in zip(cut(mask[::-1]), cut(keep[::-1]), strict=True):
        last = np.flatnonzero(m)[:count]
        k[last] = False
        count -= len(last)
        if not count:
            return


def _magnitudes(flat: Tensor) -> Iterator[Integers]:
    """Those of each block, in the same memory."""
    bits = bits_of(flat)
    memory = np.empty(min(BLOCK, len(bits)), bits.dtype)
    for block in cut(bits):
        yield np.bitwise_and(block, np.iinfo(bits.dtype).max, out=memory[: len(block)])


def _unsigned(bits: Integers) -> Integers:
    return np.bitwise_and(bits, np.iinfo(bits.dtype).max, out=bits)
