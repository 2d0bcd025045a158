"""A ring: n chains, rotated, so that every wire carries the same load (Patarasuk and Yuan, 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from stretto.text import named
from stretto.topologies.graph import Cost, Trees


@named("ring", kind="topology")
@dataclass(frozen=True)
class Ring(Cost):
    """Tree t is the chain t+1, t+2, …, t. Best for large tensors: each agent sends 2(n-1)/n of the buffer.

    >>> [role.parent for role in Ring().graph((0, 1, 2)).roles(0)]
    [0, 1, 1]
    """

    kind: ClassVar[str] = "topology"

    def graph(self, hosts: tuple[int, ...]) -> Trees:
        return _ring(len(hosts))


@lru_cache(maxsize=16)
def _ring(size: int) -> Trees:
    ranks = np.arange(size, dtype=np.int32)
    parents = np.tile((ranks + 1) % size, (size, 1)).astype(np.int32)
    parents[ranks, ranks] = ranks
    return Trees(parents)
