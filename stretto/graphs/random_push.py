"""Everybody tells one other, drawn anew each time: a directed graph that changes, on which some hear nobody."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from stretto.core import mixed
from stretto.graphs.peers import Even
from stretto.text import named


@named("random_push", kind="graph")
@dataclass(frozen=True)
class RandomPush(Even):
    """Each tells one other, all equally likely, and keeps half. One message an agent; who hears how many is chance.

    Kempe, Dobra, Gehrke: Gossip-based computation of aggregate information, FOCS 2003, section 2.
    """

    balanced: ClassVar[bool] = False

    def tells(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        return () if size == 1 else (_aims(size, clock, seed)[0][rank],)

    def hears(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        return () if size == 1 else _aims(size, clock, seed)[1][rank]

    def cycle(self, size: int) -> Tensor:
        """Expected W."""
        if size == 1:
            return torch.ones(1, 1, dtype=torch.float64)
        return torch.full((size, size), 0.5 / (size - 1), dtype=torch.float64).fill_diagonal_(0.5)


@lru_cache(maxsize=64)
def _aims(size: int, clock: int, seed: int) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Whom each tells, and who tells each."""
    aims = tuple((rank + 1 + mixed(seed, clock, rank) % (size - 1)) % size for rank in range(size))
    tellers: list[list[int]] = [[] for _ in range(size)]
    for rank, aim in enumerate(aims):
        tellers[aim].append(rank)
    return aims, tuple(map(tuple, tellers))
