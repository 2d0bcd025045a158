"""Recursive doubling: whole tensors between pairs, twice as far apart each round. The fewest delays, for small tensors.

After round k every agent holds the sum of its group of 2^(k+1). Two partners add the same two sums, and a + b = b + a
also in floating point, so all agents end with the same bits. Agents beyond the largest power of two send theirs to a
partner before, and get the result after (Thakur, Rabenseifner and Gropp 2005, section 4.3).

What arrives is received in pieces, and each is added to while the next is on its way. Sums form in the buffer that was
received into, so that a tensor that is still being sent is never written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stretto.core import Link

PIECE = 256 << 10
"""Bytes of a piece: a few of them hide adding behind receiving, and stay in cache."""


async def double(link: Link, x: Tensor) -> None:
    """``x`` (1-d) becomes its mean over agents, in place."""
    core = 1 << (link.size.bit_length() - 1)
    rank, extra = link.rank, link.rank + core
    pieces = -(-x.nbytes // PIECE)
    if rank >= core:
        link.post(rank - core, (x,), 0)
        await link.recv(rank - core, 1, x)
        return
    now, spare = x, torch.empty_like(x)
    if extra < link.size:
        await link.recv(extra, 0, spare)
        x.add_(spare)
    distance, tag = 1, 2
    while distance < core:
        partner = rank ^ distance
        mine, theirs = _cut(now, pieces), _cut(spare, pieces)
        arrivals = [link.recv(partner, tag + i, t) for i, t in enumerate(theirs)]
        for i, t in enumerate(mine):
            link.post(partner, (t,), tag + i)
        for arrival, other, own in zip(arrivals, theirs, mine, strict=True):
            await arrival
            other.add_(own)
        await link.drain()
        now, spare = spare, now
        distance, tag = distance << 1, tag + pieces
    torch.mul(now, 1 / link.size, out=x)
    if extra < link.size:
        link.post(extra, (x,), 1)
        await link.drain()


def _cut(x: Tensor, pieces: int) -> tuple[Tensor, ...]:
    return x.tensor_split(pieces) if pieces > 1 else (x,)
