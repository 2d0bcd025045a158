"""The exponential graph: everybody tells those 1, 2, 4, … further on."""

from __future__ import annotations

from dataclasses import dataclass

from stretto.graphs.peers import Even, others
from stretto.text import named


@named("exponential", kind="graph")
@dataclass(frozen=True)
class Exponential(Even):
    """Each tells the τ = ⌈log2 n⌉ agents that are 1, 2, 4, … further on, 1/(τ + 1) each.

    For even n the gap is 2/(τ + 1), for odd n larger: it hardly sinks with the number of agents.

    Ying et al.: Exponential graph is provably efficient for decentralized deep training, NeurIPS 2021
    (arXiv 2110.13363), section 3.
    """

    def tells(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        return others(rank, size, *leaps(size))

    def hears(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        return others(rank, size, *(-leap for leap in leaps(size)))


def leaps(size: int) -> tuple[int, ...]:
    """All powers of two below ``size``.

    >>> leaps(1), leaps(2), leaps(6)
    ((), (1,), (1, 2, 4))
    """
    return tuple(1 << k for k in range((size - 1).bit_length()))
