"""All-reduce along any topology: one executor for all of them.

Theory of operation. A topology is a set of trees, each for its part of the flat tensor, cut into pieces. Two
coroutines run side by side, so that both directions of the wire are used. ``reduce`` adds what the children send and
passes the sum to the parent; at a root it makes it a mean and turns it round. ``spread`` receives means straight into
their place and passes them on. Children are added in the order that the graph gives, whoever was quicker: the bits
depend on nothing but the data and the graph, and as every piece is finished at one root, all agents end with the same.

Payloads that cannot be added on the way (top-k, quantised) take another: see :mod:`stretto.exchanges.owners`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from stretto.core import Cell, Codec, Like, Link, Message, Native, Topology
from stretto.errors import UsageError
from stretto.exchanges import plan as plans
from stretto.exchanges.doubling import double
from stretto.exchanges.owners import Part, kept_by_owners, mean_by_owners, parts_of
from stretto.exchanges.plan import Plan
from stretto.topologies.auto import Auto
from stretto.topologies.butterfly import Butterfly
from stretto.topologies.native import Native as Own

AHEAD = 4
"""Receives posted before they are awaited on the way down; they need no memory of their own."""


@dataclass(frozen=True)
class AllReduce:
    """The mean over all agents. ``chunk`` (bytes) overrides what is computed from the network.

    A floating tensor of any size and dtype, on the CPU; sums are formed in its own dtype.
    """

    topology: Topology
    chunk: int | None = None

    async def mean(self, link: Link, x: Tensor, codec: Codec, cell: Cell) -> Tensor:
        """Overwrites ``x`` where the codec's payload is the tensor itself. The mean of an agent alone is ``x``.

        Raises:
            PeerLost: an agent that was needed is gone; then ``x`` is undefined.
            UsageError: it is not floating, or ``native`` on a link without an all-reduce.
            NonFinite: it holds NaN or infinity, which the codec cannot send.
            DamagedPayload: an agent sent what cannot be decoded.
        """
        if link.size == 1:
            return x
        like = cell.like
        if not codec.summable:
            flat = x.reshape(-1)
            return (await mean_by_owners(link, flat, codec, cell, self._parts(link.hosts, like))).view(x.shape)
        state = codec.init(like) if cell.state is None else cell.state
        payload, state = codec.encode(x, like, state)
        for number in range(codec.passes):
            if number:
                payload, state = codec.refine(payload, like, state)
            cell.state = state
            for tensor in payload:
                await self.reduce(link, tensor)
        mean, cell.state = codec.decode(payload, like, state)
        return mean

    def kept(self, codec: Codec, cell: Cell, hosts: tuple[int, ...]) -> Tensor | None:
        """What was held back of this agent's ``x`` so far (float32, flat), among agents on these ``hosts``."""
        if codec.summable:
            return None if cell.state is None else codec.kept(cell.like, cell.state)
        return kept_by_owners(codec, cell, self._parts(hosts, cell.like))

    def _parts(self, hosts: tuple[int, ...], like: Like) -> tuple[Part, ...]:
        if isinstance(self.topology, Own):
            raise UsageError("a link's own all-reduce (topology native) adds tensors, not codes: use topology=auto")
        return parts_of(self.topology, hosts, like.numel)

    async def reduce(self, link: Link, x: Tensor) -> None:
        """``x`` becomes its mean over agents, in place."""
        if not x.is_floating_point():
            raise UsageError(f"the mean of {x.dtype} is not defined: convert it to a floating dtype first")
        if not x.is_contiguous():
            raise UsageError(f"a tensor of strides {x.stride()} cannot be reduced in place: call .contiguous() first")
        if link.size == 1 or x.numel() == 0:
            return
        flat = x.view(-1)
        topology = self.topology
        if isinstance(topology, Auto):
            own = hasattr(link, "all_reduce")  # isinstance() of a Protocol takes microseconds
            topology = Own() if own else topology.choose(link.hosts, x.nbytes, link.network)
        if isinstance(topology, Own):
            await _native(link, flat)
            return
        if isinstance(topology, Butterfly) and topology.whole(link.size, flat.nbytes):
            await double(link, flat)
            return
        plan = plans.prepare(
            topology,
            link.hosts,
            link.network,
            link.rank,
            flat.numel(),
            flat.element_size(),
            self.chunk,
        )
        pieces = flat.split(plan.sizes)
        await link.together(reduce(link, plan, pieces), spread(link, plan, pieces))
        await link.drain()


async def reduce(link: Link, plan: Plan, pieces: Sequence[Tensor]) -> None:
    """The way up, with receives posted ahead into scratch that stays in cache."""
    recv, post, sizes, rank, scale = link.recv, link.post, plan.sizes, link.rank, 1 / link.size
    spare, real = _scratch(plan, pieces), not pieces[0].is_meta
    coming = plan.arrivals()
    posted: deque[tuple[Awaitable[Message], Tensor, int]] = deque()
    for slot, (child, piece) in enumerate(islice(coming, plan.ahead)):
        buffer = spare[sizes[piece]][slot]
        posted.append((recv(child, 2 * piece, buffer), buffer, slot))
    for piece, (parent, children) in zip(plan.up, plan.up_edges, strict=True):
        mine = pieces[piece]
        for _ in children:
            arrival, buffer, slot = posted.popleft()
            await arrival
            if real:
                mine.add_(buffer)
            following = next(coming, None)
            if following is not None:
                child, later = following
                buffer = spare[sizes[later]][slot]
                posted.append((recv(child, 2 * later, buffer), buffer, slot))
        if parent != rank:
            post(parent, (mine,), 2 * piece)
        else:
            if real:
                mine.mul_(scale)
            for child in children:
                post(child, (mine,), 2 * piece + 1)


async def spread(link: Link, plan: Plan, pieces: Sequence[Tensor]) -> None:
    """The way down, received in place."""
    recv, post, down, edges = link.recv, link.post, plan.down, plan.down_edges
    posted = deque([recv(edges[i].parent, 2 * down[i] + 1, pieces[down[i]]) for i in range(min(AHEAD, len(down)))])
    for next_, (piece, (_, children)) in enumerate(zip(down, edges, strict=True), AHEAD):
        await posted.popleft()
        if next_ < len(down):
            later = down[next_]
            posted.append(recv(edges[next_].parent, 2 * later + 1, pieces[later]))
        for child in children:
            post(child, (pieces[piece],), 2 * piece + 1)


def _scratch(plan: Plan, pieces: Sequence[Tensor]) -> dict[int, list[Tensor]]:
    """For every size of piece, ``plan.ahead`` buffers; those of different sizes share their memory."""
    if not plan.ahead:
        return {}
    largest = max(plan.sizes)
    slots = torch.empty(plan.ahead, largest, dtype=pieces[0].dtype, device=pieces[0].device).unbind()
    return {size: [slot[:size] if size < largest else slot for slot in slots] for size in set(plan.sizes)}


async def _native(link: Link, flat: Tensor) -> None:
    if not isinstance(link, Native):
        raise UsageError(
            f"topology native needs a link with an all-reduce of its own (shm, c10d), and agent {link.rank}'s "
            f"{type(link).__name__} has none: use topology=auto"
        )
    await link.all_reduce(flat, 1 / link.size)
