"""What the network is like, measured by the agents themselves and agreed on: the longest delay and the lowest rate.

Each agent times a few small messages to its right neighbour and back, then bursts that grow until one takes several
round trips, all agents at once, as an all-reduce would load the network. The numbers go up a binary tree and the
worst come down, so every agent decides by the same ones.
"""

from __future__ import annotations

import math

import torch

from stretto.core import Link, Network

_PINGS = 4
_BURSTS = (64 << 10, 512 << 10, 4 << 20)
_ENOUGH_TRIPS = 4.0
_ENOUGH_SECONDS = 0.05
_PING, _PONG, _UP, _DOWN = range(4)


async def measure(link: Link) -> Network:
    """The slowest neighbour's one-way delay (s) and rate (bytes/s); the same on every agent.

    Raises:
        PeerLost: an agent left meanwhile.
    """
    if link.size == 1:
        return link.network
    (delay, rate), _ = await link.together(_time(link), _echo(link))
    worst = await _worst(link, torch.tensor([delay, 1.0 / rate], dtype=torch.float64))
    await link.drain()
    return Network(delay=_rounded(float(worst[0])), rate=_rounded(1.0 / float(worst[1])))


def _rounded(x: float) -> float:
    """To a power of two, so that two runs on one network agree on what it is, and choose alike."""
    return float(2.0 ** round(math.log2(max(x, 1e-9))))


async def _time(link: Link) -> tuple[float, float]:
    right = (link.rank + 1) % link.size
    trip, rate = float("inf"), 1.0
    for nbytes in (*(1,) * _PINGS, *_BURSTS):
        begin = link.now()
        link.post(right, (torch.zeros(nbytes, dtype=torch.uint8),), _PING)
        await link.recv(right, _PONG)
        seconds = link.now() - begin
        trip = min(trip, seconds)
        rate = nbytes / max(seconds - trip, 1e-6)
        if nbytes > 1 and seconds - trip > max(_ENOUGH_TRIPS * trip, _ENOUGH_SECONDS):
            break
    link.post(right, (torch.empty(0, dtype=torch.uint8),), _PING)
    return trip / 2, rate


async def _echo(link: Link) -> None:
    left = (link.rank - 1) % link.size
    while (await link.recv(left, _PING)).payload[0].numel():
        link.post(left, (torch.zeros(1, dtype=torch.uint8),), _PONG)


async def _worst(link: Link, mine: torch.Tensor) -> torch.Tensor:
    children = [c for c in (2 * link.rank + 1, 2 * link.rank + 2) if c < link.size]
    for child in children:
        mine = torch.maximum(mine, (await link.recv(child, _UP)).payload[0])
    if link.rank:
        parent = (link.rank - 1) // 2
        link.post(parent, (mine,), _UP)
        mine = (await link.recv(parent, _DOWN)).payload[0]
    for child in children:
        link.post(child, (mine,), _DOWN)
    return mine
