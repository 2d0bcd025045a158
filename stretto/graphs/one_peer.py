"""The one-peer exponential graph: 1 further on, then 2, then 4, …, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.graphs.exponential import leaps
from stretto.graphs.peers import Even, matrix, others
from stretto.text import named


@named("one_peer", kind="graph")
@dataclass(frozen=True)
class OnePeer(Even):
    """Each tells one agent, which is 1, 2, 4, … further on in turn, and keeps half.

    Of n = 2^τ agents all have exactly the mean after τ mixings, each of one message an agent. Of other numbers the mean
    is kept, too, but never exactly reached: a period of ⌈log2 n⌉ mixings has a gap below 1.

    Ying et al.: Exponential graph is provably efficient for decentralized deep training, NeurIPS 2021
    (arXiv 2110.13363), section 4.
    """

    def tells(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        return others(rank, size, _leap(size, clock))

    def hears(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        return others(rank, size, -_leap(size, clock))

    def cycle(self, size: int) -> Tensor:
        out = torch.eye(size, dtype=torch.float64)
        for clock in range(len(leaps(size))):
            out = matrix(self, size, clock) @ out
        return out


def _leap(size: int, clock: int) -> int:
    turns = leaps(size)
    return turns[clock % len(turns)] if turns else 0
