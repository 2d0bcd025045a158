"""Inside machines first, then across them, then back: what crosses the slow network is reduced before it does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from stretto.core import Topology
from stretto.text import named
from stretto.topologies.graph import Cost, Ints, Trees
from stretto.topologies.ring import Ring

PLAIN = Ring()


@named("hierarchical", kind="topology")
@dataclass(frozen=True)
class Hierarchical(Cost):
    """``inside`` reduces the agents of a machine to one of them, ``across`` reduces those.

    The buffer is shared out: as many agents of a machine lead, each for its share, as the smallest machine has agents.
    With all agents on one machine this is plainly ``inside``; with one agent on each, plainly ``across``.
    """

    inside: Topology = PLAIN
    across: Topology = PLAIN
    kind: ClassVar[str] = "topology"

    def graph(self, hosts: tuple[int, ...]) -> Trees:
        return _hierarchical(self.inside, self.across, hosts)


@lru_cache(maxsize=16)
def _hierarchical(inside: Topology, across: Topology, hosts: tuple[int, ...]) -> Trees:
    machines = [[r for r, h in enumerate(hosts) if h == host] for host in dict.fromkeys(hosts)]
    outer = _parents(across, len(machines))
    shares = min(map(len, machines))
    rows = []
    for share in range(shares):
        base = np.arange(len(hosts), dtype=np.int32)
        for members in machines:
            base[members] = _inside(inside, members, share)
        leaders = np.array([members[share] for members in machines], np.int32)
        for parents in outer:
            row = base.copy()
            row[leaders] = leaders[parents]
            rows.append(row)
    return Trees(np.stack(rows))


def _inside(inside: Topology, members: list[int], leader: int) -> list[int]:
    """Parents of ``members`` in a tree of ``inside``, its places turned so that ``members[leader]`` is the root."""
    trees = _parents(inside, len(members)).tolist()
    parents = trees[leader % len(trees)]
    (root,) = [place for place, parent in enumerate(parents) if parent == place]
    turn, size = leader - root, len(members)
    return [members[(parents[(place - turn) % size] + turn) % size] for place in range(size)]


def _parents(topology: Topology, size: int) -> Ints:
    """``parents[tree, place]`` of ``topology`` over ``size`` places, each a machine of its own."""
    return Trees.of(topology.graph(tuple(range(size)))).parents
