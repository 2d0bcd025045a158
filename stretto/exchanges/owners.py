"""The mean of payloads that cannot be added on their way: each part has an owner, which decodes and adds.

Theory of operation. The flat tensor is cut into parts, each owned by the root of one of the topology's trees: along a
ring, a butterfly, or where the agents choose (``auto``) all own a part; of a star or a tree one agent owns all, and of
a double tree two. Everybody encodes every part and sends it straight to its owner. That one decodes all, adds in
float32 in the order of ranks, encodes the mean and sends it to everybody, itself included, so all decode the same
bytes: two encodings, whatever the topology and the number of agents. An agent's own state of a part, and the owner's
state of its means, remember apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

from stretto.core import Cell, Codec, Like, Link, Topology, mixed
from stretto.topologies.auto import Auto
from stretto.topologies.graph import Trees
from stretto.topologies.ring import Ring

SCATTER, GATHER = 0, 1
_AGAIN: Final = 1
"""An owner draws otherwise for the mean than it did for its own part of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Elements ``start`` up to ``stop``, and the rank that adds them."""

    owner: int
    start: int
    stop: int


@lru_cache(maxsize=128)
def parts_of(topology: Topology, hosts: tuple[int, ...], numel: int) -> tuple[Part, ...]:
    """The parts of ``numel`` elements that are not empty."""
    graph = Trees.of((Ring() if isinstance(topology, Auto) else topology).graph(hosts))
    edges = [numel * tree // graph.trees for tree in range(graph.trees + 1)]
    parts = (Part(graph.root(tree), edges[tree], edges[tree + 1]) for tree in range(graph.trees))
    return tuple(part for part in parts if part.start < part.stop)


async def mean_by_owners(link: Link, x: Tensor, codec: Codec, cell: Cell, parts: Sequence[Part]) -> Tensor:
    """The mean over agents of ``x`` (1-d), as new memory."""
    likes = [cell.like.part(p.start, p.stop, i) for i, p in enumerate(parts)]
    if cell.state is None:
        cell.state = _begin(codec, likes, parts, link)
    sending, means = list(cell.state["sending"]), dict(cell.state["means"])
    others = [r for r in range(link.size) if r != link.rank]
    mine = [i for i, p in enumerate(parts) if p.owner == link.rank]
    scattered = {(i, r): link.recv(r, 2 * i + SCATTER, _room(codec, likes[i])) for i in mine for r in others}
    gathered = {
        i: link.recv(p.owner, 2 * i + GATHER, _room(codec, likes[i])) for i, p in enumerate(parts) if i not in mine
    }
    own = {}
    for i, p in enumerate(parts):
        payload, sending[i] = codec.encode(x[p.start : p.stop], likes[i], sending[i])
        if p.owner == link.rank:
            own[i] = payload
        else:
            link.post(p.owner, payload, 2 * i + SCATTER)
    cell.state = {**cell.state, "sending": sending}
    out = torch.empty_like(x)
    for i in mine:
        total = torch.zeros(likes[i].numel, dtype=torch.float32, device=x.device)
        for r in range(link.size):
            payload = own[i] if r == link.rank else (await scattered[i, r]).payload
            total += codec.decode(payload, likes[i], sending[i])[0]
        total /= link.size
        again = replace(likes[i], own=mixed(likes[i].own, _AGAIN))
        agreed, means[str(i)] = codec.encode(total, again, means[str(i)])
        cell.state = {**cell.state, "means": dict(means)}
        for r in others:
            link.post(r, agreed, 2 * i + GATHER)
        out[parts[i].start : parts[i].stop] = codec.decode(agreed, likes[i], means[str(i)])[0]
    for i, arrival in gathered.items():
        out[parts[i].start : parts[i].stop] = codec.decode((await arrival).payload, likes[i], sending[i])[0]
    await link.drain()
    return out


def _room(codec: Codec, like: Like) -> Tensor | None:
    """Where a payload will lie, if it is known how long it is: then no other takes any memory."""
    return torch.empty(codec.size(like), dtype=torch.uint8) if codec.exact else None


def kept_by_owners(codec: Codec, cell: Cell, parts: Sequence[Part]) -> Tensor | None:
    """What an agent holds back: of what it sent, and, for as many agents as shared it, of means that it owned."""
    if cell.state is None:
        return None
    held = [(i, state, 1) for i, state in enumerate(cell.state["sending"])]
    held += [(int(i), state, cell.state["size"]) for i, state in cell.state["means"].items()]
    out: Tensor | None = None
    for i, state, times in held:
        found = codec.kept(cell.like.part(parts[i].start, parts[i].stop, i), state)
        if found is not None:
            out = torch.zeros(cell.like.numel) if out is None else out
            out[parts[i].start : parts[i].stop].add_(found, alpha=times)
    return out


def _begin(codec: Codec, likes: Sequence[Like], parts: Sequence[Part], link: Link) -> dict[str, Any]:
    return {
        "size": link.size,
        "sending": [codec.init(like) for like in likes],
        "means": {str(i): codec.init(likes[i]) for i, p in enumerate(parts) if p.owner == link.rank},
    }
