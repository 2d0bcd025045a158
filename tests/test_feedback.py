"""Error feedback, low rank and codecs by layer: what is special to them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contracts.coding import alone, bucket, exchange, filled, norm, same
from stretto.codecs import Feedback, LowRank, PerLayer, TopK
from stretto.core import Codec, Like, Named
from stretto.errors import NonFinite, UsageError
from stretto.text import parse

AGENTS, ROWS, COLUMNS = 4, 12, 10
LIKE = Like((ROWS * COLUMNS,), torch.float32, (Named("weight", (ROWS, COLUMNS)),))


class Convex:
    """Least squares, another one at each agent: none of their gradients is zero where their mean is."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        n = ROWS * COLUMNS
        mixing = torch.randn(AGENTS, n, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
        self.curves = mixing @ mixing.mT / 2 + torch.eye(n, dtype=torch.float64)
        self.targets = torch.randn(AGENTS, n, generator=generator, dtype=torch.float64)
        pull = (self.curves @ self.targets[:, :, None]).sum(0)[:, 0]
        self.best = torch.linalg.solve(self.curves.sum(0), pull)

    def gradients(self, at: Tensor) -> list[Tensor]:
        return [(c @ (at - t)).float() for c, t in zip(self.curves, self.targets, strict=True)]


def mean(codec: Codec, xs: list[Tensor], states: list[object], owner: object) -> tuple[Tensor, list[object], object]:
    """As agents agree: sums on their way, or an owner that adds what all sent and encodes the mean once more."""
    likes = [Like(LIKE.shape, LIKE.dtype, LIKE.pieces, own=rank) for rank in range(AGENTS)]
    round_ = exchange(codec, xs, likes, states)
    if codec.summable:
        return round_.decoded[0], round_.states, owner
    again = alone(codec, torch.stack(round_.decoded).mean(0), LIKE, owner)
    return again.decoded[0], round_.states, again.states[0]


def distance(codec: Codec, step: float = 0.1, steps: int = 1500) -> float:
    """How far from the best, by its own length, so many steps end."""
    problem = Convex()
    at, states, owner = torch.zeros_like(problem.best), [codec.init(LIKE) for _ in range(AGENTS)], codec.init(LIKE)
    for _ in range(steps):
        update, states, owner = mean(codec, problem.gradients(at), states, owner)
        at = at - step * update.double()
    return float((at - problem.best).norm() / problem.best.norm())


def main():
    for t in ("identity","topk(0.05)","feedback(topk(0.05))","sign","feedback(sign)","int2","feedback(int2)","lowrank(1)","feedback(lowrank(1))","randomk(0.1, scaled=false)","feedback(randomk(0.1, scaled=false))","topk(0.1)+int4","feedback(topk(0.1)+int4)","dct_topk(0.1)","feedback(dct_topk(0.1))","threshold(0.1)","feedback(threshold(0.1))","ternary"):
        c=parse(t,"codec")
        print(t, *[ '%.1e'%distance(c,st,n) for st,n in ((0.1,1500),(0.02,1500),(0.02,4000))])
if __name__=="__main__":
    torch.set_num_threads(1); main()
