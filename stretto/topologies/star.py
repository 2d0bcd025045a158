"""A star: everyone sends to agent 0, which answers everyone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from stretto.text import named
from stretto.topologies.graph import Cost, Trees


@named("star", kind="topology")
@dataclass(frozen=True)
class Star(Cost):
    """Two hops whatever the size, so best for few agents and little data.

    Agent 0 is the bottleneck: it receives and sends n-1 times the buffer. A codec that cannot be summed encodes twice:
    each agent, and agent 0 the mean.
    """

    kind: ClassVar[str] = "topology"

    def graph(self, hosts: tuple[int, ...]) -> Trees:
        return _star(len(hosts))


@lru_cache(maxsize=16)
def _star(size: int) -> Trees:
    return Trees(np.zeros((1, size), np.int32))
