"""A binary tree with agent 0 at its root."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from stretto.text import named
from stretto.topologies.graph import Cost, Trees


@named("tree", kind="topology")
@dataclass(frozen=True)
class Tree(Cost):
    """2 log2(n) hops; an interior agent sends three times the buffer, a leaf once: see ``double_tree`` for the cure.

    A codec that cannot be summed encodes twice, not at every edge: everybody sends straight to the root, as in a star.
    """

    kind: ClassVar[str] = "topology"

    def graph(self, hosts: tuple[int, ...]) -> Trees:
        return _tree(len(hosts))


@lru_cache(maxsize=16)
def _tree(size: int) -> Trees:
    ranks = np.arange(size, dtype=np.int32)
    return Trees(np.maximum(ranks - 1, 0)[None, :] // 2)
