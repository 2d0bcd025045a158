"""The transport's own all-reduce: a name to ask for it by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stretto.core import Graph, Network
from stretto.errors import UsageError
from stretto.text import named


@named("native", kind="topology")
@dataclass(frozen=True)
class Native:
    """Use the link's ``all_reduce``: on ``shm`` in place in shared memory, on ``c10d`` the backend's (Gloo, NCCL).

    It is no graph: the exchange calls the link instead, and raises UsageError on a link that has none.
    """

    kind: ClassVar[str] = "topology"

    def graph(self, hosts: tuple[int, ...]) -> Graph:
        raise UsageError(
            "topology native is the all-reduce of the link and has no graph; name ring, tree, star, double_tree, "
            "butterfly or hierarchical to see one"
        )

    def seconds(self, hosts: tuple[int, ...], nbytes: int, network: Network) -> float:
        """The bound 2(n-1)/n · bytes/rate: what a transport's own algorithm may reach."""
        n = len(hosts)
        return network.delay + 2 * (n - 1) / n * nbytes / network.rate
