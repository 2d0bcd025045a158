"""Who talks to whom in an agreement of all, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from stretto.core.link import Network


@dataclass(frozen=True, slots=True)
class Role:
    """What one agent does in one tree: receives from ``children``, sends to ``parent`` (itself at the root).

    ``height`` is its longest way down to a leaf and ``depth`` its way up to the root, in edges.
    """

    tree: int
    parent: int
    children: tuple[int, ...]
    height: int
    depth: int


class Graph(Protocol):
    """Trees to reduce up and broadcast down; the buffer is cut into ``trees`` equal parts, part i travels on tree i."""

    @property
    def size(self) -> int: ...
    @property
    def trees(self) -> int: ...
    def roles(self, rank: int) -> tuple[Role, ...]:
        """This agent's role in every tree, by tree number."""
        ...


class Topology(Protocol):
    """Who talks to whom, as data: nobody is contacted here."""

    kind: ClassVar[str] = "topology"

    def __hash__(self) -> int: ...
    def graph(self, hosts: tuple[int, ...]) -> Graph:
        """The graph for ``len(hosts)`` agents; ``hosts[rank]`` numbers the machine of each."""
        ...

    def seconds(self, hosts: tuple[int, ...], nbytes: int, network: Network) -> float:
        """Predicted time of an all-reduce of ``nbytes``: what ``auto`` chooses by."""
        ...
