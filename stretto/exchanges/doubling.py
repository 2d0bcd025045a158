"""Recursive doubling: whole tensors between pairs, twice as far apart each round. The fewest delays, for small tensors.

After round k every agent holds the sum of its group of 2^(k+1). Two partners add the same two sums, and a + b = b + a
also in floating point, so all agents end with the same bits. Agents beyond the largest power of two send theirs to a
partner before, and get the result after (Thakur, Rabenseifner and Gropp 2005, section 4.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stretto.core import Link

_BEFORE, _AFTER, _ROUNDS = 0, 1, 2


async def double(link: Link, x: Tensor) -> None:
    """``x`` (1-d) becomes its mean over agents, in place."""
    core = 1 << (link.size.bit_length() - 1)
    rank, other = link.rank, torch.empty_like(x)
    if rank >= core:
        link.post(rank - core, (x,), _BEFORE)
        await link.recv(rank - core, _AFTER, x)
        return
    if rank + core < link.size:
        await link.recv(rank + core, _BEFORE, other)
        x.add_(other)
    distance, tag = 1, _ROUNDS
    while distance < core:
        partner = rank ^ distance
        link.post(partner, (x,), tag)
        await link.recv(partner, tag, other)
        await link.drain()
        x.add_(other)
        distance, tag = distance << 1, tag + 1
    x.mul_(1 / link.size)
    if rank + core < link.size:
        link.post(rank + core, (x,), _AFTER)
        await link.drain()
