"""A graph to mix along: for each agent a row of weights, and what follows from all rows together.

Theory of operation. Agent i's tensor becomes Σ_j W_ij x_j. Whatever graph, each column of W sums to one: an agent gives
away, what it keeps included, all that it has, so the sum over agents stays. Where a graph is ``balanced``, rows sum to
one, too (W is doubly stochastic): then each agent's tensor becomes a mean, and where all are equal they remain so.
Other graphs are for push-sum, which divides by what a tensor of ones would have become.

A row is found from the rank alone, or from tables that are drawn once for all: never from all of W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """What one agent does: the weight of its ``own`` tensor, whom it hears (rank, weight), and whom it tells."""

    own: float
    hears: tuple[tuple[int, float], ...] = ()
    tells: tuple[int, ...] = ()

    def relaxed(self, rate: float) -> Row:
        """A row of ``(1 - rate) I + rate W``: sums of rows and of columns stay one."""
        if rate == 1:
            return self
        hears = tuple((rank, rate * weight) for rank, weight in self.hears)
        return Row(1 - rate * (1 - self.own), hears, self.tells)


class Peers(Protocol):
    """Who mixes with whom, as data: nobody is contacted here."""

    kind: ClassVar[str] = "graph"

    def __hash__(self) -> int: ...
    @property
    def balanced(self) -> bool:
        """Do the weights by which an agent hears sum to one, for any number of agents?"""
        ...

    def row(self, rank: int, size: int, clock: int, seed: int = 0) -> Row:
        """What ``rank`` of ``size`` agents does in the ``clock``-th mixing; what is drawn follows from ``seed``."""
        ...

    def cycle(self, size: int) -> Tensor:
        """Float64 ``[size, size]``: W; the product of a period where it changes; its expectation where it is drawn."""
        ...


class Even(ABC):
    """An agent shares what it has in equal parts with all that it tells: 1/(1 + how many) each, itself included.

    Where it is ``balanced``, whoever hears of each other tell equally many.
    """

    kind: ClassVar[str] = "graph"
    balanced: ClassVar[bool] = True

    @abstractmethod
    def tells(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        """Others, each once."""

    def hears(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        """Those that tell it: here, whom it tells."""
        return self.tells(rank, size, clock, seed)

    def row(self, rank: int, size: int, clock: int, seed: int = 0) -> Row:
        told = self.tells(rank, size, clock, seed)
        own = 1 / (1 + len(told))
        heard = self.hears(rank, size, clock, seed)
        if self.balanced:
            return Row(own, tuple((peer, own) for peer in heard), told)
        return Row(own, tuple((peer, 1 / (1 + len(self.tells(peer, size, clock, seed)))) for peer in heard), told)

    def cycle(self, size: int) -> Tensor:
        return matrix(self, size)


def others(rank: int, size: int, *offsets: int) -> tuple[int, ...]:
    """Ranks so far on, around the circle: sorted, each once, and without ``rank``.

    >>> others(0, 4, 1, -1, 2, 4)
    (1, 2, 3)
    """
    return tuple(sorted({(rank + offset) % size for offset in offsets} - {rank}))


def reached(start: int, edges: Sequence[Collection[int]]) -> set[int]:
    """All that can be come to from ``start``, along ``edges[rank]`` of whom one has come to; itself included."""
    found, ahead = {start}, [start]
    while ahead:
        new = set(edges[ahead.pop()]) - found
        found |= new
        ahead.extend(new)
    return found


def matrix(graph: Peers, size: int, clock: int = 0, seed: int = 0) -> Tensor:
    """W of the ``clock``-th mixing, float64 ``[size, size]``: row i is what agent i makes of what it hears.

    >>> from stretto.graphs import Ring
    >>> matrix(Ring(), 4)[0] * 3
    tensor([1., 1., 0., 1.], dtype=torch.float64)
    """
    out = torch.zeros(size, size, dtype=torch.float64)
    for rank in range(size):
        row = graph.row(rank, size, clock, seed)
        out[rank, rank] = row.own
        for peer, weight in row.hears:
            out[rank, peer] = weight
    return out


def spectral_gap(graph: Peers, size: int) -> float:
    """1 - |λ|, of the second largest eigenvalue λ of ``graph.cycle(size)``.

    The distance from consensus shrinks by |λ| in one mixing; where the graph changes, in one period. Of ``matching``,
    which is drawn, it is the squared distance that shrinks by |λ|, on average.

    >>> from stretto.graphs import Complete, Ring
    >>> round(spectral_gap(Ring(), 16), 4), round(spectral_gap(Complete(), 16), 4)
    (0.0507, 1.0)
    """
    if size == 1:
        return 1.0
    magnitudes = torch.linalg.eigvals(graph.cycle(size)).abs().sort(descending=True).values
    return 1 - float(magnitudes[1])
