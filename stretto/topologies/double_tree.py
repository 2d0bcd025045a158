"""Two complementary binary trees, half of the buffer on each (Sanders, Speck and Träff, 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from stretto.text import named
from stretto.topologies.graph import Cost, Ints, Trees


@named("double_tree", kind="topology")
@dataclass(frozen=True)
class DoubleTree(Cost):
    """2 log2(n) hops at nearly the ring's bandwidth: every agent is interior in one tree at most, a leaf in the other.

    The first tree is binary and in order, so that its leaves are the odd positions; the second is its mirror image
    (even n) or its shift by one (odd n), so that they are its interior.
    """

    kind: ClassVar[str] = "topology"

    def graph(self, hosts: tuple[int, ...]) -> Trees:
        return _double_tree(len(hosts))


@lru_cache(maxsize=16)
def _double_tree(size: int) -> Trees:
    first = np.array([_parent(rank + 1, size) - 1 for rank in range(size)], np.int32)
    ranks = np.arange(size, dtype=np.int32)
    other: Ints = size - 1 - ranks if size % 2 == 0 else (ranks + 1) % size
    back = np.argsort(other).astype(np.int32)
    return Trees(np.stack([first, back[first[other]]]))


def _parent(position: int, size: int) -> int:
    """The parent, in the in-order binary tree over positions 1 … size, where a node's lowest set bit is its level."""
    low = position & -position
    parent = (position ^ low) | (low << 1)
    if parent > size:
        parent = position ^ low
    return parent or position
