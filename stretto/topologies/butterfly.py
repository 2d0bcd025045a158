"""Recursive halving and doubling, for any number of agents (Thakur, Rabenseifner and Gropp, 2005)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from stretto.core import Network
from stretto.text import named
from stretto.topologies.graph import MESSAGE, Cost, Trees

WHOLE = 128 * 1024
"""Bytes up to which whole tensors are doubled: twice the hops saved outweigh the bytes."""


@named("butterfly", kind="topology")
@dataclass(frozen=True)
class Butterfly(Cost):
    """2 log2(n) hops at the ring's bandwidth when n is a power of two; log2(n) hops up to ``WHOLE`` bytes.

    With p the largest power of two up to n, tree i is binomial: an agent's parent agrees with root i in one more of the
    leading bits. Agents from p on hang below the one p before them, which then carry the whole buffer once more. Small
    tensors are not halved: partners exchange them whole (:mod:`stretto.exchanges.doubling`).
    """

    kind: ClassVar[str] = "topology"

    def graph(self, hosts: tuple[int, ...]) -> Trees:
        return _butterfly(len(hosts))

    def seconds(self, hosts: tuple[int, ...], nbytes: int, network: Network) -> float:
        if nbytes > WHOLE:
            return super().seconds(hosts, nbytes, network)
        size = len(hosts)
        core = 1 << (size.bit_length() - 1)
        rounds = core.bit_length() - 1 + (2 if core < size else 0)
        return rounds * (network.delay + MESSAGE + nbytes / network.rate)


@lru_cache(maxsize=16)
def _butterfly(size: int) -> Trees:
    p = 1 << (size.bit_length() - 1)
    roots = np.arange(p, dtype=np.int32)[:, None]
    ranks = np.arange(p, dtype=np.int32)[None, :]
    differ = ranks ^ roots
    highest = np.where(differ > 0, 1 << np.maximum(np.frexp(differ)[1] - 1, 0), 0).astype(np.int32)
    extra = np.broadcast_to(np.arange(size - p, dtype=np.int32), (p, size - p))
    return Trees(np.concatenate([ranks ^ highest, extra], axis=1).astype(np.int32))
