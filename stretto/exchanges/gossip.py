"""Gossip: an agent's tensor becomes a weighted mean of its own and its neighbours', along a graph.

Theory of operation. With W the graph's matrix, and q_j what others decode of x_j, agent i has afterwards

    x_i + Σ_j W_ij q_j - q_i            (q_i and W_ii q_i its own)

Sent as it is, q = x, and this is W x: D-PSGD, Lian et al. 2017 (arXiv 1705.09056), algorithm 1. Sent by a lossy codec,
it is CHOCO-Gossip, Koloskova et al. 2019 (arXiv 1902.00340), algorithm 1, without its memory of what neighbours know;
with a codec in ``feedback``, DeepSqueeze, Tang et al. 2019 (arXiv 1907.07346), algorithm 1. As columns of W sum to one,
what all add is what all take away: the sum over agents stays, whatever a codec loses. What it loses does come between
the agents, though, in proportion to their tensors and not to their differences: a lower ``rate`` gives it less weight,
and ``randomk(scaled=false)``, which draws the same places at all agents, loses of differences only.

Sums are formed in the order of ranks, so agents that hear the same by the same weights have the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stretto.codecs.identity import Identity
from stretto.core import Cell, Codec, Link
from stretto.errors import UsageError
from stretto.graphs.peers import Peers, Row
from stretto.text import named


@named("gossip", kind="mixing")
@dataclass(frozen=True)
class Gossip:
    """x ← x + rate (W q - q), along a balanced ``graph``.

    Each agent sends one payload to each that the graph says it tells, and nothing to others: as many bytes as it tells
    agents, times the codec's size. It holds as many tensors as it hears neighbours.

    Args:
        graph: with weights whose rows and columns sum to one.
        rate: how far towards W: 1, or less where a codec loses much.
        every: steps from one mixing to the next, so that a graph that changes takes one turn in each.

    Raises:
        UsageError: ``graph`` is for push-sum only, or ``rate`` or ``every`` cannot be.
    """

    graph: Peers
    rate: float = 1.0
    every: int = 1
    kind: ClassVar[str] = "mixing"

    def __post_init__(self) -> None:
        check_turns(self, self.rate, self.every)
        if not self.graph.balanced:
            raise UsageError(
                f"{self}: along graph={self.graph} agents do not hear as much as they tell, so that no mean is kept: "
                "use push_sum, or graph=exponential"
            )

    async def mix(self, link: Link, x: Tensor, codec: Codec, cell: Cell, clock: int) -> Tensor:
        """New memory.

        Raises:
            PeerLost: a neighbour is gone.
            UsageError: the codec needs the mean of all agents.
            NonFinite: it holds NaN or infinity, which the codec cannot send.
            DamagedPayload: a neighbour sent what cannot be decoded.
        """
        row = self.graph.row(link.rank, link.size, clock // self.every, cell.like.seed)
        return await blend(link, row.relaxed(self.rate), x, codec, cell)


async def blend(link: Link, row: Row, x: Tensor, codec: Codec, cell: Cell, tag: int = 0) -> Tensor:
    """``x + Σ_j row_j q_j - q`` as new memory, in one message to each that the row says is told.

    ``cell.state`` is the codec's; it changes when the payload leaves.

    Raises:
        PeerLost, UsageError, NonFinite, DamagedPayload: as :meth:`Gossip.mix`.
    """
    check_alone(codec)
    if link.size == 1:
        return x.clone()
    plain = isinstance(codec, Identity)
    arrivals = {peer: link.recv(peer, tag, torch.empty_like(x) if plain else None) for peer, _ in row.hears}
    state = codec.init(cell.like) if cell.state is None else cell.state
    payload, cell.state = codec.encode(x, cell.like, state)  # also by whom nobody hears: all must have drawn as often
    for peer in row.tells:
        link.post(peer, payload, tag)
    own = codec.decode(payload, cell.like, cell.state)[0]
    out = x - own
    for peer, weight in sorted([*row.hears, (link.rank, row.own)]):
        heard = own if peer == link.rank else codec.decode((await arrivals[peer]).payload, cell.like, cell.state)[0]
        out.add_(heard, alpha=weight)
    await link.drain()
    return out


def check_alone(codec: Codec) -> None:
    """
    Raises:
        UsageError: one agent's payload means nothing without those of all others.
    """
    if codec.passes > 1:
        raise UsageError(
            f"codec={codec} makes its second pass of the mean of all agents, which neighbours do not have: use "
            "codec=int8, or codec=randomk(0.1, scaled=false)"
        )


def check_turns(mixing: object, rate: float, every: int) -> None:
    """
    Raises:
        UsageError: of what all mixings along graphs are told, something cannot be.
    """
    if not 0 < rate <= 1:
        raise UsageError(f"{mixing}: rate={rate} must be above 0 and at most 1; 1 is usual, and 0.5 for coarse codecs")
    if not isinstance(every, int) or every < 1:
        raise UsageError(f"{mixing}: every={every} must be a whole number of steps from 1 on")
