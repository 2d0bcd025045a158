"""What one agent does in one all-reduce, in order: computed once a size, then only followed.

Each tree's part of the flat tensor is cut into pieces. An agent's work is two lists, ``up`` and ``down``, each in the
order in which things become ready: piece c of a tree in which the agent stands h edges high (or deep) comes at
c + h lag, where lag is how many pieces leave while one is under way. All keep to it, so nobody waits in a circle.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from stretto.core import Network, Topology
from stretto.topologies.graph import Trees, chunk

WINDOW = 4 * 1024 * 1024
"""Most bytes of scratch (what arrives before it is added), as far as the children of one agent allow."""

SLACK = 3
"""Pieces from one level to the next, beyond those under way: one leaves, one arrives, one is added."""


class Edges(NamedTuple):
    """Whom an agent hears and tells. ``parent`` is itself at a root."""

    parent: int
    children: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """``sizes`` cuts the flat tensor; ``up[i]`` is a piece and ``up_edges[i]`` its edges, and so on the way down.

    On the way up, ``ahead`` receives are posted before they are awaited. A piece's tag is ``2 piece`` on its way up and
    ``2 piece + 1`` on its way down. (Columns and shared edges: a thousand simulated agents hold a million pieces.)
    """

    sizes: tuple[int, ...]
    up: array[int]
    up_edges: tuple[Edges, ...]
    down: array[int]
    down_edges: tuple[Edges, ...]
    ahead: int

    def arrivals(self) -> Iterator[tuple[int, int]]:
        """(child, piece) of all receives on the way up, in order."""
        for piece, (_, children) in zip(self.up, self.up_edges, strict=True):
            for child in children:
                yield child, piece


@lru_cache(maxsize=128)
def prepare(
    topology: Topology, hosts: tuple[int, ...], network: Network, rank: int, numel: int, itemsize: int, cut: int | None
) -> Plan:
    """The plan of ``rank`` for ``numel`` elements, in pieces of ``cut`` bytes (None: what suits the network)."""
    return plan(Trees.of(topology.graph(hosts)), rank, numel, itemsize, network, cut)


def plan(graph: Trees, rank: int, numel: int, itemsize: int, network: Network, cut: int | None) -> Plan:
    size = max(1, (cut or chunk(numel * itemsize, graph.trees, graph.deepest, network)) // itemsize)
    lag = SLACK + int(network.delay * network.rate / (size * itemsize))
    sizes: list[int] = []
    edges: list[Edges] = []
    known: dict[Edges, Edges] = {}
    ups: list[tuple[int, int]] = []
    downs: list[tuple[int, int]] = []
    for role in graph.roles(rank):
        first, last = numel * role.tree // graph.trees, numel * (role.tree + 1) // graph.trees
        pieces = -(-(last - first) // size)
        ends = Edges(role.parent, role.children)
        ends = known.setdefault(ends, ends)
        for i in range(pieces):
            piece = len(sizes)
            ups.append((role.height * lag + i, piece))
            if role.parent != rank:
                downs.append((role.depth * lag + i, piece))
            sizes.append((last - first) * (i + 1) // pieces - (last - first) * i // pieces)
            edges.append(ends)
    ups.sort()
    downs.sort()
    up, down = array("i", [piece for _, piece in ups]), array("i", [piece for _, piece in downs])
    widest = max((len(e.children) for e in known), default=0)
    return Plan(
        tuple(sizes),
        up,
        tuple([edges[piece] for piece in up]),
        down,
        tuple([edges[piece] for piece in down]),
        _ahead(sum(len(e.children) for e in edges), widest, size * itemsize),
    )


def _ahead(arrivals: int, widest: int, nbytes: int) -> int:
    """Room for the children of this piece and of the next, within WINDOW."""
    return min(arrivals, max(2, min(2 * widest, WINDOW // nbytes)))
