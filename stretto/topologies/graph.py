"""Trees as data: who reduces to whom, how deep, and what that costs. Every topology is a set of trees.

The flat buffer is cut into as many equal parts as there are trees; part *i* is reduced up tree *i* and broadcast down
it. A ring is *n* chains, a star one flat tree, recursive halving and doubling *p* binomial trees: one executor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from stretto.core import Graph, Network, Role

Ints = NDArray[np.int32]

MESSAGE = 20e-6
"""What a message costs its sender besides its bytes (s): a system call and a few Python frames."""

SMALLEST, LARGEST = 16 * 1024, 2 * 1024 * 1024
"""Bounds of a chunk (bytes): below, messages cost more than their bytes; above, a chunk falls out of the cache."""


@dataclass(frozen=True, eq=False)
class Trees:
    """A :class:`~stretto.core.Graph` held as ``parents[tree, rank]``; a root is its own parent."""

    parents: Ints

    @staticmethod
    def of(graph: Graph) -> Trees:
        """Any graph as trees."""
        if isinstance(graph, Trees):
            return graph
        columns = [[role.parent for role in graph.roles(rank)] for rank in range(graph.size)]
        return Trees(np.array(columns, np.int32).T)

    @property
    def size(self) -> int:
        return int(self.parents.shape[1])

    @property
    def trees(self) -> int:
        return int(self.parents.shape[0])

    def root(self, tree: int) -> int:
        """Where ``tree`` ends."""
        return int(np.flatnonzero(self.parents[tree] == self._ranks[tree])[0])

    @cached_property
    def depths(self) -> Ints:
        """Edges up to the root, by pointer doubling: log2(deepest) rounds over all trees at once."""
        return _climb(self.parents, self._ranks != self.parents)

    @cached_property
    def heights(self) -> Ints:
        """Edges down to the farthest leaf: the deepest level first, each tells its parents."""
        heights = np.zeros(self.parents.size, np.int32)
        up = (self.parents + np.arange(self.trees, dtype=np.int32)[:, None] * self.size).ravel()
        depths = self.depths.ravel()
        order = np.argsort(depths, kind="stable")
        levels = np.searchsorted(depths[order], np.arange(int(depths.max(initial=0)) + 2))
        for level in range(len(levels) - 2, 0, -1):
            nodes = order[levels[level] : levels[level + 1]]
            np.maximum.at(heights, up[nodes], heights[nodes] + 1)
        return heights.reshape(self.parents.shape)

    @cached_property
    def deepest(self) -> int:
        """Edges on the longest way from an agent to its root."""
        return int(self.depths.max(initial=0))

    @cached_property
    def _ranks(self) -> Ints:
        return np.broadcast_to(np.arange(self.size, dtype=np.int32), self.parents.shape)

    @cached_property
    def _children(self) -> tuple[NDArray[np.intp], Ints]:
        """Children sorted by (parent, tree, rank), and where those of parent * trees + tree begin."""
        tree, child = np.nonzero(self._ranks != self.parents)
        key = self.parents[tree, child].astype(np.int64) * self.trees + tree
        order = np.argsort(key, kind="stable")
        starts = np.searchsorted(key[order], np.arange(self.size * self.trees + 1))
        return starts, child[order].astype(np.int32)

    def roles(self, rank: int) -> tuple[Role, ...]:
        starts, children = self._children
        bounds = starts[rank * self.trees : (rank + 1) * self.trees + 1].tolist()
        kids = children[bounds[0] : bounds[-1]].tolist()
        first = bounds[0]
        return tuple(
            Role(tree, parent, tuple(kids[a - first : b - first]), height, depth)
            for tree, (parent, a, b, height, depth) in enumerate(
                zip(
                    self.parents[:, rank].tolist(),
                    bounds,
                    bounds[1:],
                    self.heights[:, rank].tolist(),
                    self.depths[:, rank].tolist(),
                    strict=False,
                )
            )
        )


def _climb(parents: Ints, weight: NDArray[np.bool_]) -> Ints:
    """The sum of ``weight`` (0 at roots) over the edges from each agent to its root."""
    total, jump = weight.astype(np.int32), parents
    for _ in range(parents.shape[1].bit_length() + 1):
        further = np.take_along_axis(jump, jump, 1)
        if np.array_equal(further, jump):
            return total
        total = total + np.take_along_axis(total, jump, 1)
        jump = further
    raise ValueError("parents hold a cycle: some agent never reaches a root")


@dataclass(frozen=True, slots=True)
class Load:
    """What a graph asks of the network, per byte of the buffer: read off the trees, not off a formula per topology."""

    hops: int
    """Edges between machines on the longest way up."""
    edges: int
    """All edges on the longest way up."""
    fan: int
    """Most children that one agent hears in one tree."""
    wire: float
    """Share of the buffer (may exceed 1) that the busiest machine sends to others, up and down together."""
    memory: float
    """The same for what the busiest agent sends inside its machine."""
    messages: int
    """Messages that the busiest agent sends, if no part is cut."""
    trees: int


def load(graph: Trees, hosts: tuple[int, ...]) -> Load:
    """The load of ``graph``; with all agents on one machine, the network is what lies between them."""
    tree, child = np.nonzero(graph._ranks != graph.parents)
    parent = graph.parents[tree, child]
    place = np.asarray(hosts if len(set(hosts)) > 1 else range(graph.size))
    across = place[child] != place[parent]
    ends = np.concatenate([child, parent])
    agents = np.bincount(ends, minlength=graph.size)
    outside = np.concatenate([place[child][across], place[parent][across]])
    inside = np.concatenate([child[~across], parent[~across]])
    fans = np.bincount(tree * graph.size + parent, minlength=1)
    crossing = np.zeros(graph.parents.shape, np.bool_)
    crossing[tree, child] = across
    return Load(
        hops=int(_climb(graph.parents, crossing).max(initial=0)),
        edges=graph.deepest,
        fan=int(fans.max(initial=0)),
        wire=float(np.bincount(outside, minlength=1).max()) / graph.trees,
        memory=float(np.bincount(inside, minlength=1).max()) / graph.trees,
        messages=int(agents.max(initial=0)),
        trees=graph.trees,
    )


def chunk(nbytes: int, trees: int, edges: int, network: Network) -> int:
    """Bytes of a piece, so that a pipe ``edges`` agents long fills early.

    The time of C pieces through h hops, (C + h)(nbytes / C / rate + cost), is least at sqrt(nbytes rate cost / h). A
    part is at most cut: it shares no piece with another.
    """
    best = int(math.sqrt(nbytes * network.rate * MESSAGE / max(1, edges)))
    return max(1, min(-(-nbytes // trees), max(SMALLEST, min(LARGEST, best))))


def seconds(load: Load, nbytes: int, network: Network) -> float:
    """Predicted time (s) of an all-reduce of ``nbytes``, in Hockney's alpha-beta model (1994) with a cost per message.

    Two things bound it: the longest path, up and down, of one piece; and the busiest wire (or sender). With one tree
    the first fills the pipe and the second empties it, one after the other; with many they hide behind each other.
    """
    piece, inner = chunk(nbytes, load.trees, load.edges, network), Network()
    hop = network.delay + load.fan * piece / network.rate
    step = inner.delay + load.fan * piece / inner.rate
    path = 2 * (load.hops * hop + (load.edges - load.hops) * step + load.edges * MESSAGE)
    sending = nbytes * (load.wire / network.rate + load.memory / inner.rate)
    pieces = -(-nbytes // (load.trees * piece))
    busy = max(sending, load.messages * pieces * MESSAGE)
    return max(path, busy) + min(path, busy) / load.trees


class Cost(ABC):
    """Gives a topology its ``seconds`` from its own ``graph``."""

    @abstractmethod
    def graph(self, hosts: tuple[int, ...]) -> Graph: ...

    def seconds(self, hosts: tuple[int, ...], nbytes: int, network: Network) -> float:
        return seconds(_load_of(self, hosts), nbytes, network) if len(hosts) > 1 else 0.0


@lru_cache(maxsize=256)
def _load_of(topology: Cost, hosts: tuple[int, ...]) -> Load:
    return load(Trees.of(topology.graph(hosts)), hosts)
