"""An outer optimizer at every agent, which meets one random peer at a time: NoLoCo.

Theory of operation (Kolehmainen et al.: NoLoCo: No-all-reduce low communication training method for large models, 2025,
arXiv 2506.10911, section 3, with groups of two). An agent has slow weights phi, which it started its last steps from,
and a momentum delta. After some steps, which led it to theta, it meets a peer, and with means over the two

    delta = momentum delta + lr mean(theta - phi) - gamma (phi - mean(phi))        phi += delta        theta = phi

so slow weights are drawn together by gamma. Here all are drifts from where all agreed last: x for theta, and for phi a
``slow`` that begins at zero; the formula is linear, so it stays as it is. Sent are x and slow.

With independent pairs of many agents and no gradients, the moments E u², E u delta, E delta² of u = phi - mean(phi)
follow a linear map of 3 x 3 (half of E u² is within a pair). Its largest eigenvalue is below 1 if and only if
0 < gamma < 2 (1 - momentum²): beyond, slow weights go apart. At 0.5 and 0.7 it is 0.70 a meeting.

Pairs are those of the graph ``matching``, drawn alike by all; where their number is odd one agent is alone, and its
means are its own. With a lossy codec the means, and what gamma draws by, are of decoded tensors, so that the two are
drawn by the same amount.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stretto.core import Cell, Codec, Like, Link
from stretto.errors import UsageError
from stretto.exchanges.apart import check_apart, written
from stretto.graphs.matching import Matching
from stretto.text import named


@named("outer_pairs", kind="mixing")
@dataclass(frozen=True)
class NoLoCo:
    """``momentum``, ``lr`` and ``gamma`` as in the formula above."""

    momentum: float = 0.5
    lr: float = 0.7
    gamma: float = 0.7
    kind: ClassVar[str] = "mixing"

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise UsageError(f"outer_momentum={self.momentum} must be from 0 to below 1; 0.5 is usual")
        if not 0 < self.lr < 2 * (1 + self.momentum):
            raise UsageError(f"outer_lr={self.lr} must be above 0 and below 2 (1 + outer_momentum), or it diverges")
        most = 2 * (1 - self.momentum**2)
        if not 0 < self.gamma < most:
            raise UsageError(
                f"gamma={self.gamma} must be above 0 and below 2 (1 - outer_momentum²), or agents go apart; "
                f"{most / 2:.3g} would do"
            )

    async def mix(self, link: Link, x: Tensor, codec: Codec, cell: Cell, clock: int) -> Tensor:
        """The slow weights after the outer step: where this agent goes on from.

        Raises:
            PeerLost: the peer of this time is gone.
            NonFinite: ``x`` holds NaN or infinity, which the codec cannot send.
            UsageError: the codec's payloads cannot be read one by one.
        """
        if cell.state is None:
            check_apart(codec, "noloco")
            zero = torch.zeros_like(x)
            cell.state = {"slow": zero, "momentum": zero, "codecs": [codec.init(like) for like in _likes(cell)]}
        slow: Tensor = cell.state["slow"]
        ahead, apart = x - slow, torch.zeros_like(x)
        for peer in Matching().tells(link.rank, link.size, clock, cell.like.seed):
            mine, theirs = await _met(link, peer, (x, slow), codec, cell)
            ahead = (mine[0] - mine[1] + theirs[0] - theirs[1]) / 2
            apart = (mine[1] - theirs[1]) / 2
        momentum = self.momentum * cell.state["momentum"] + self.lr * ahead - self.gamma * apart
        slow = slow + momentum
        cell.state = {**cell.state, "slow": slow, "momentum": momentum}
        return slow.clone()


async def _met(
    link: Link, peer: int, xs: tuple[Tensor, ...], codec: Codec, cell: Cell
) -> tuple[list[Tensor], list[Tensor]]:
    """Our tensors and the peer's, as both read them."""
    likes, codecs = _likes(cell), list(cell.state["codecs"])
    arrivals = [link.recv(peer, number) for number in range(len(xs))]
    mine, theirs = [], []
    for number, x in enumerate(xs):
        payload, read, codecs[number] = written(x, codec, likes[number], codecs[number])
        link.post(peer, payload, number)
        mine.append(read)
    cell.state = {**cell.state, "codecs": codecs}
    for number, arrival in enumerate(arrivals):
        theirs.append(codec.decode((await arrival).payload, likes[number], codecs[number])[0])
    await link.drain()
    return mine, theirs


def _likes(cell: Cell) -> list[Like]:
    """Of the two tensors that are sent: each draws otherwise."""
    return [cell.like.part(0, cell.like.numel, number) for number in range(2)]
