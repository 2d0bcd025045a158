"""Directed graphs on which not all tell equally many: what an agent hears does not sum to one. For push-sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stretto.graphs.exponential import leaps
from stretto.graphs.peers import Even, others
from stretto.text import named


@named("directed_ring", kind="graph")
@dataclass(frozen=True)
class DirectedRing(Even):
    """Each tells the next, and those of even rank also the one after it: as where wires differ in what they bear.

    Assran et al.: Stochastic gradient push for distributed deep learning, ICML 2019 (arXiv 1811.10792), section 2.
    """

    balanced: ClassVar[bool] = False

    def tells(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        return others(rank, size, 1, 2) if rank % 2 == 0 else others(rank, size, 1)

    def hears(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        before = (rank - 2) % size
        return others(rank, size, -1, -2) if before % 2 == 0 else others(rank, size, -1)


@named("directed_exponential", kind="graph")
@dataclass(frozen=True)
class DirectedExponential(Even):
    """Rank r tells those 1, 2, … 2^(r mod τ) further on, with τ = ⌈log2 n⌉: some tell one, and some tell τ.

    Assran et al.: Stochastic gradient push for distributed deep learning, ICML 2019 (arXiv 1811.10792), appendix A,
    with out-degrees that vary.
    """

    balanced: ClassVar[bool] = False

    def tells(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        return others(rank, size, *_leaps(rank, size))

    def hears(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        return others(rank, size, *(-leap for leap in leaps(size) if leap in _leaps((rank - leap) % size, size)))


def _leaps(rank: int, size: int) -> tuple[int, ...]:
    turns = leaps(size)
    return turns[: 1 + rank % len(turns)] if turns else ()
