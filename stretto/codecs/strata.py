"""A cheap draw of k of n elements: one of each of k equal parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TOGETHER = 65_536


class Strata(NamedTuple):
    """Parts ``first`` and following: which element was drawn of each, and of how many."""

    first: int
    at: Tensor
    width: Tensor


def strata(n: int, k: int, seed: int) -> Iterator[Strata]:
    """Of each of k equal parts of n elements one, uniformly; some parts at a time.

    Only raw bits are used, which a bit generator promises to be the same in every version of numpy.
    """
    bits = np.random.PCG64(seed)
    for first in range(0, k, TOGETHER):
        number = np.arange(first, min(k, first + TOGETHER) + 1)
        edges = number * (n // k) + number * (n % k) // k
        width = np.diff(edges)
        drawn = (bits.random_raw(len(width)) >> np.uint64(32)) * width.astype(np.uint64) >> np.uint64(32)
        yield Strata(first, torch.from_numpy(edges[:-1] + drawn.astype(np.int64)), torch.from_numpy(width))
