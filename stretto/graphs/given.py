"""A graph by its edges, as somebody wrote them down."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from torch import Tensor

from stretto.errors import UsageError
from stretto.graphs.peers import Row, matrix, reached
from stretto.graphs.ring import Ring
from stretto.text import named

_EDGE = re.compile(r"\s*(\d{1,3})\s*-\s*(\d{1,3})\s*")


@named("given", kind="graph")
@dataclass(frozen=True)
class Given:
    """Pairs of ranks that mix with each other, as in ``given('0-1, 1-2, 2-0')``.

    Edges weigh 1/(1 + d), where d is how many the busier of both ends has (Metropolis and Hastings; Xiao, Boyd and Kim:
    Distributed average consensus with least-mean-square deviation, 2007, section 3), so the mean is kept.

    It is for as many agents as it names. While there are others (one has died, or has come) it is a ring.

    Raises:
        UsageError: it cannot be read, or does not connect all ranks from 0 on.
    """

    edges: str
    kind: ClassVar[str] = "graph"
    balanced: ClassVar[bool] = True

    def __post_init__(self) -> None:
        neighbours = _neighbours(self.edges)
        apart = set(range(len(neighbours))) - reached(0, neighbours)
        if apart:
            missing = _bridges(sorted(apart), neighbours)
            raise UsageError(
                f"{self}: edges leave {len(apart)} agents (first: agent {min(apart)}) without a way to agent 0; "
                f"given('{self.edges}{missing}') would do"
            )

    def row(self, rank: int, size: int, clock: int, seed: int = 0) -> Row:
        neighbours = _neighbours(self.edges)
        if size != len(neighbours):
            return Ring().row(rank, size, clock, seed)
        mine = neighbours[rank]
        hears = tuple((peer, 1 / (1 + max(len(mine), len(neighbours[peer])))) for peer in mine)
        return Row(1 - sum(weight for _, weight in hears), hears, mine)

    def cycle(self, size: int) -> Tensor:
        return matrix(self, size)


@lru_cache(maxsize=64)
def _neighbours(edges: str) -> tuple[tuple[int, ...], ...]:
    found: dict[int, set[int]] = {}
    for edge in edges.split(","):
        read = _EDGE.fullmatch(edge)
        one, other = (int(read[1]), int(read[2])) if read else (0, 0)
        if one == other:
            raise UsageError(f"given({edges!r}): edges has {edge.strip()!r}, which is no pair of ranks like '0-1'")
        found.setdefault(one, set()).add(other)
        found.setdefault(other, set()).add(one)
    return tuple(tuple(sorted(found.get(rank, ()))) for rank in range(max(found) + 1))


def _bridges(apart: list[int], neighbours: tuple[tuple[int, ...], ...]) -> str:
    """Edges to agent 0 that would connect them."""
    found, connected = "", set[int]()
    for rank in apart:
        if rank not in connected:
            connected |= reached(rank, neighbours)
            found += f", 0-{rank}"
    return found
