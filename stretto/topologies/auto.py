"""Choosing a topology by size, number of agents and what the network was measured to be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from stretto.core import Graph, Network, Topology
from stretto.text import named
from stretto.topologies.butterfly import Butterfly
from stretto.topologies.double_tree import DoubleTree
from stretto.topologies.hierarchical import Hierarchical
from stretto.topologies.ring import Ring
from stretto.topologies.star import Star
from stretto.topologies.tree import Tree

TYPICAL = 4 * 1024 * 1024


@named("auto", kind="topology")
@dataclass(frozen=True)
class Auto:
    """The topology that :meth:`Topology.seconds` predicts to be quickest.

    All agents see the same hosts and the same ``link.network``, so that all choose the same. An exchange prefers the
    link's own all-reduce where it has one.
    """

    kind: ClassVar[str] = "topology"

    def choose(self, hosts: tuple[int, ...], nbytes: int, network: Network) -> Topology:
        """The quickest for ``nbytes``; of equals the first listed."""
        return _choose(hosts, nbytes, network)

    def graph(self, hosts: tuple[int, ...]) -> Graph:
        """The graph for a typical bucket of 4 MiB on a typical network."""
        return self.choose(hosts, TYPICAL, Network()).graph(hosts)

    def seconds(self, hosts: tuple[int, ...], nbytes: int, network: Network) -> float:
        return self.choose(hosts, nbytes, network).seconds(hosts, nbytes, network)


@lru_cache(maxsize=1024)
def _choose(hosts: tuple[int, ...], nbytes: int, network: Network) -> Topology:
    candidates: list[Topology] = [Ring(), Star(), Tree(), DoubleTree(), Butterfly()]
    if 1 < len(set(hosts)) < len(hosts):
        candidates += [Hierarchical(), Hierarchical(Star(), Ring()), Hierarchical(Star(), Tree())]
    return min(candidates, key=lambda topology: topology.seconds(hosts, nbytes, network))
