"""Random pairs, drawn anew for each mixing, the same at all agents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stretto.core import mixed
from stretto.graphs.peers import Even
from stretto.text import named


@named("matching", kind="graph")
@dataclass(frozen=True)
class Matching(Even):
    """Each takes the mean with one other; of an odd number of agents one is left over, which stays as it is.

    All pairs are equally likely. On average a mixing leaves (n - 2)/(2 n - 2) of the squared distance from consensus
    if n is even, and half of it if n is odd.

    Boyd et al.: Randomized gossip algorithms, 2006 (IEEE Transactions on Information Theory 52), section II.
    """

    def tells(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        partner = _partners(size, clock, seed)[rank]
        return () if partner == rank else (partner,)

    def cycle(self, size: int) -> Tensor:
        """Expected W. (A pair's W is its own square, so what it leaves of squared distances is what it leaves.)"""
        pair = 1 / (size - 1 + size % 2) if size > 1 else 0.0
        out = torch.full((size, size), pair / 2, dtype=torch.float64)
        return out.fill_diagonal_(1 - (size - 1) * pair / 2)


@lru_cache(maxsize=64)
def _partners(size: int, clock: int, seed: int) -> tuple[int, ...]:
    order = sorted(range(size), key=lambda rank: mixed(seed, clock, rank))
    partners = list(range(size))
    for one, other in zip(order[::2], order[1::2], strict=False):
        partners[one], partners[other] = other, one
    return tuple(partners)
