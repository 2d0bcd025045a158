"""The mean of payloads that cannot be added on their way: each part has an owner, which decodes and adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stretto.core import Codec, Link, State

SCATTER, GATHER = 0, 1


async def mean_by_owners(link: Link, xs: Sequence[Tensor], codec: Codec, state: State) -> tuple[list[Tensor], State]:
    """Reduce-scatter by owner, then all-gather. ``state``: per tensor, one state per part and one for the mean."""
    states = list(state) if state is not None else [None] * len(xs)
    means: list[Tensor] = []
    for i, x in enumerate(xs):
        mean, states[i] = await _mean(link, x, codec, states[i])
        means.append(mean)
    return means, states


async def _mean(link: Link, x: Tensor, codec: Codec, state: State) -> tuple[Tensor, State]:
    parts = x.reshape(-1).tensor_split(link.size)
    mine, others = link.rank, [r for r in range(link.size) if r != link.rank]
    coding, outgoing = state or ([codec.init(p) for p in parts], codec.init(parts[mine]))
    scattered = {r: link.recv(r, SCATTER) for r in others if parts[mine].numel()}
    gathered = {r: link.recv(r, GATHER) for r in others if parts[r].numel()}
    payloads = {}
    for r, part in enumerate(parts):
        if part.numel():
            payloads[r], coding[r] = codec.encode(part, coding[r])
            if r != mine:
                link.post(r, payloads[r], SCATTER)
    out = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
    places = out.tensor_split(link.size)
    if parts[mine].numel():
        total = torch.zeros(parts[mine].shape, dtype=torch.float32, device=x.device)
        for r in range(link.size):
            payload = payloads[mine] if r == mine else (await scattered[r]).payload
            total += codec.decode(payload, coding[mine])[0]
        agreed, outgoing = codec.encode((total / link.size).to(x.dtype), outgoing)
        for r in others:
            link.post(r, agreed, GATHER)
        places[mine].copy_(codec.decode(agreed, outgoing)[0])
    for r, arrival in gathered.items():
        places[r].copy_(codec.decode((await arrival).payload, coding[r])[0])
    await link.drain()
    return out.view(x.shape), (coding, outgoing)
