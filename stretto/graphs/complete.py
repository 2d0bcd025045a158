"""Everybody with everybody: the mean of all, for n-1 messages each."""

from __future__ import annotations

from dataclasses import dataclass

from stretto.graphs.peers import Even
from stretto.text import named


@named("complete", kind="graph")
@dataclass(frozen=True)
class Complete(Even):
    """Each with all, 1/n each: one mixing is the mean. The gap is 1."""

    def tells(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        return (*range(rank), *range(rank + 1, size))
