"""One agent's tensor to all, down a binary tree, in pieces that are passed on as they come.

It begins when all are there, who say so up the tree: as with every collective, whoever has finished one knows that
all have begun it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from stretto.core import Link
from stretto.exchanges.allreduce import spread
from stretto.exchanges.plan import prepare
from stretto.topologies.graph import Cost, Trees

_HERE: Final = 0
"""The tag of "we are here"; pieces have odd ones."""


@dataclass(frozen=True)
class Rooted(Cost):
    """A binary tree with ``root`` at its top: agents are numbered from it on."""

    root: int
    kind: ClassVar[str] = "topology"

    def graph(self, hosts: tuple[int, ...]) -> Trees:
        place = (np.arange(len(hosts)) - self.root) % len(hosts)
        return Trees(((np.maximum(place - 1, 0) // 2 + self.root) % len(hosts)).astype(np.int32)[None, :])


async def broadcast(link: Link, x: Tensor, root: int = 0) -> None:
    """``x`` (contiguous, the same size and dtype everywhere) becomes ``root``'s ``x``.

    Raises:
        PeerLost: an agent on the way from the root is gone.
    """
    if link.size == 1 or x.numel() == 0:
        return
    await _gather(link, root)
    flat = x.view(-1)
    plan = prepare(Rooted(root), link.hosts, link.network, link.rank, flat.numel(), flat.element_size(), None)
    pieces = flat.split(plan.sizes)
    if link.rank == root:
        for piece, (_, children) in zip(plan.up, plan.up_edges, strict=True):
            for child in children:
                link.post(child, (pieces[piece],), 2 * piece + 1)
    await spread(link, plan, pieces)
    await link.drain()


async def _gather(link: Link, root: int) -> None:
    role = Trees.of(Rooted(root).graph(link.hosts)).roles(link.rank)[0]
    for child in role.children:
        await link.recv(child, _HERE)
    if role.parent != link.rank:
        link.post(role.parent, (torch.empty(0, dtype=torch.uint8),), _HERE)
