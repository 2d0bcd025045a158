"""Push-sum: the mean along graphs on which agents need not hear as much as they tell.

Theory of operation. Where only the columns of W sum to one, mixing keeps the sum over agents but favours those who hear
much. So a number w, which is 1 at first, is mixed along with the tensor x, and z = x / w is what agents work with: all
z reach the mean, and the sum of all w is the number of agents, always. (Kempe, Dobra and Gehrke, FOCS 2003.)

An agent trains z, and its steps are added to x: Assran et al. 2019 (arXiv 1811.10792), algorithm 1. So every agent's
steps count alike, however much it hears. What it trained is the difference between the z it is given and the z it
returned last, which it therefore remembers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stretto.codecs.identity import Identity
from stretto.core import Cell, Codec, Like, Link
from stretto.exchanges.gossip import blend, check_turns
from stretto.graphs.peers import Peers
from stretto.text import named


@named("push_sum", kind="mixing")
@dataclass(frozen=True)
class PushSum:
    """z ← (W x) / (W w), along any ``graph``: what is given and returned is z.

    Each agent sends one payload and 8 bytes to each that the graph says it tells. What a lossy codec loses stays with
    its sender, as in :mod:`stretto.exchanges.gossip`. All must begin alike: whenever all agents agree, they forget.

    Args:
        graph: with weights whose columns sum to one, fixed or changing.
        rate: how far towards W: 1, or less where a codec loses much.
        every: steps from one mixing to the next, so that a graph that changes takes one turn in each.

    Raises:
        UsageError: ``rate`` or ``every`` cannot be.
    """

    graph: Peers
    rate: float = 1.0
    every: int = 1
    kind: ClassVar[str] = "mixing"

    def __post_init__(self) -> None:
        check_turns(self, self.rate, self.every)

    async def mix(self, link: Link, x: Tensor, codec: Codec, cell: Cell, clock: int) -> Tensor:
        """New memory. ``cell.state`` is a dict: the codec's state, w (``weight``), and z (``last``).

        Raises:
            PeerLost, UsageError, NonFinite, DamagedPayload: as :meth:`stretto.exchanges.gossip.Gossip.mix`.
        """
        row = self.graph.row(link.rank, link.size, clock // self.every, cell.like.seed).relaxed(self.rate)
        before = cell.state or {"codec": None, "weight": torch.ones(1, dtype=torch.float64), "last": None}
        weight, last = before["weight"], before["last"]
        biased = x if last is None else torch.add(x, last, alpha=float(weight) - 1)
        coded, plain = Cell(cell.like, before["codec"]), Cell(Like.of(weight))
        results: list[Tensor] = await link.together(
            blend(link, row, biased, codec, coded, tag=0), blend(link, row, weight, Identity(), plain, tag=1)
        )
        out, weight = results
        out /= float(weight)
        cell.state = {"codec": coded.state, "weight": weight, "last": out}
        return out.clone()
