"""Recursive halving and doubling, for any number of agents (Thakur, Rabenseifner and Gropp, 2005)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from stretto.core import Network
from stretto.text import named
from stretto.topologies.graph import MESSAGE, Cost, Trees

WHOLE = 4 << 20
"""Bytes an agent may send in all rounds of doubling whole tensors; beyond, halving them pays."""


@named("butterfly", kind="topology")
@dataclass(frozen=True)
class Butterfly(Cost):
    """2 log2(n) hops at the ring's bandwidth when n is a power of two; log2(n) hops for small tensors.

    With p the largest power of two up to n, tree i is binomial: an agent's parent agrees with root i in one more of the
    leading bits. Agents from p on hang below the one p before them, which then carry the whole buffer once more. Small
    tensors are not halved: partners exchange them whole (see :meth:`whole`).
    """

    kind: ClassVar[str] = "topology"

    def graph(self, hosts: tuple[int, ...]) -> Trees:
        return _butterfly(len(hosts))

    def whole(self, size: int, nbytes: int) -> bool:
        """Are tensors of ``nbytes`` exchanged whole?"""
        return _rounds(size) * nbytes <= WHOLE

    def seconds(self, hosts: tuple[int, ...], nbytes: int, network: Network) -> float:
        if not self.whole(len(hosts), nbytes):
            return super().seconds(hosts, nbytes, network)
        return _rounds(len(hosts)) * (network.delay + MESSAGE + nbytes / network.rate)


def _rounds(size: int) -> int:
    """Of doubling, with those before and after it for agents beyond the largest power of two."""
    log = size.bit_length() - 1
    return log + (2 if size > 1 << log else 0)


@lru_cache(maxsize=16)
def _butterfly(size: int) -> Trees:
    p = 1 << (size.bit_length() - 1)
    roots = np.arange(p, dtype=np.int32)[:, None]
    ranks = np.arange(p, dtype=np.int32)[None, :]
    differ = ranks ^ roots
    highest = np.where(differ > 0, 1 << np.maximum(np.frexp(differ)[1] - 1, 0), 0).astype(np.int32)
    extra = np.broadcast_to(np.arange(size - p, dtype=np.int32), (p, size - p))
    return Trees(np.concatenate([ranks ^ highest, extra], axis=1).astype(np.int32))
