"""A ring: everybody hears two, and it takes long until what one has reaches all."""

from __future__ import annotations

from dataclasses import dataclass

from stretto.graphs.peers import Even, others
from stretto.text import named


@named("ring", kind="graph")
@dataclass(frozen=True)
class Ring(Even):
    """Each with the one before and the one after it, a third each. The gap is 1 - (1 + 2 cos(2π/n))/3, for n > 2.

    Two agents take the mean of both.
    """

    def tells(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        return others(rank, size, -1, 1)
