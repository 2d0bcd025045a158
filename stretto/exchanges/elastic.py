"""A centre that lies in slices at all agents, each drawn to it by an elastic, whenever it comes by.

Theory of operation (Zhang, Choromanska, LeCun: Deep learning with Elastic Averaging SGD, NeurIPS 2015, arXiv 1412.6651,
algorithm 1). Every so often an agent computes e = alpha (x - c) from its own x and the centre c, as it finds it, then

    x -= e        c += e

There a master holds c; here rank r serves slice r of n, so that all carry a part of the traffic and there is no agent
whose loss is worse than another's. An agent sends each owner that slice of x; the owner computes e, adds it to its
slice and answers with it: it waits for nobody, so there is no deadlock. With a lossy codec e is that of x as it was
decoded, and what both apply is what e's own payload decodes to: so the sum over agents and centre is kept, whatever is
lost and however visits interleave.

Tensors are drifts from where all agreed last, so a centre begins at zero: there. When an epoch ends it is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from stretto.core import Cell, Codec, Link, mixed
from stretto.errors import UsageError
from stretto.exchanges.apart import check_apart, written
from stretto.exchanges.asking import ask, listen
from stretto.exchanges.owners import Part, parts_of
from stretto.text import named
from stretto.topologies.ring import Ring

_BACK: Final = 1
"""An owner draws otherwise for its answers than for what it sends."""


@named("elastic", kind="mixing")
@dataclass(frozen=True)
class Elastic:
    """Draw this agent and the centre together by ``alpha`` of what is between them.

    An agent sends (n-1)/n of its tensor a visit, and as much in answers to others.
    """

    alpha: float = 0.1
    kind: ClassVar[str] = "mixing"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha={self.alpha} must be above 0 and below 1; 0.9 divided by the agents is usual")

    async def mix(self, link: Link, x: Tensor, codec: Codec, cell: Cell, clock: int) -> Tensor:
        """``x``, drawn towards the centre.

        Raises:
            PeerLost: somebody who holds a slice of the centre is gone.
            NonFinite: ``x`` holds NaN or infinity, which the codec cannot send.
            UsageError: the codec's payloads cannot be read one by one.
        """
        state = _state(link, codec, cell)
        out = x.clone()
        parts = enumerate(_parts(link, cell))
        await link.together(*(self._visit(link, out[p.start : p.stop], p, i, codec, cell, state) for i, p in parts))
        return out

    async def _visit(
        self, link: Link, x: Tensor, part: Part, number: int, codec: Codec, cell: Cell, state: dict[str, Any]
    ) -> None:
        if part.owner == link.rank:
            force = (x - state["centre"]).mul_(self.alpha)
            state["centre"] = state["centre"] + force
        else:
            like, key = cell.like.part(part.start, part.stop, number), str(number)
            payload, _, state["sending"][key] = written(x, codec, like, state["sending"].get(key) or codec.init(like))
            answer = await ask(link, part.owner, payload, state["asked"])
            force, _ = codec.decode(answer, like, state["sending"][key])
        x.sub_(force)

    async def serve(self, link: Link, codec: Codec, cell: Cell) -> None:
        """Give whoever asks the force on our slice of the centre, and let it act on that.

        Raises:
            PeerLost: nobody is left.
            DamagedPayload: an agent sent what cannot be decoded.
        """
        mine = [(i, p) for i, p in enumerate(_parts(link, cell)) if p.owner == link.rank]
        if link.size == 1 or not mine:
            return
        number, part = mine[0]
        there = cell.like.part(part.start, part.stop, number)
        back = replace(there, own=mixed(there.own, _BACK))
        coding = codec.init(back)
        while True:
            question = await listen(link)
            state = _state(link, codec, cell)
            x, coding = codec.decode(question.payload, there, coding)
            payload, force, coding = written((x - state["centre"]).mul_(self.alpha), codec, back, coding)
            question.answer(link, payload, state["answered"])
            state["centre"] = state["centre"] + force

    def settle(self, cell: Cell) -> Tensor | None:
        """Nothing: what is added to the centre is taken from an agent in one visit, which is over."""
        return None


def _parts(link: Link, cell: Cell) -> tuple[Part, ...]:
    return parts_of(Ring(), link.hosts, cell.like.numel)


def _state(link: Link, codec: Codec, cell: Cell) -> dict[str, Any]:
    """Our slice of the centre, what codecs remember, and counts. ``mix`` and ``serve`` share it."""
    if cell.state is None:
        check_apart(codec, "elastic")
        size = sum(p.stop - p.start for p in _parts(link, cell) if p.owner == link.rank)
        centre = torch.zeros(size, dtype=cell.like.dtype)
        cell.state = {"centre": centre, "sending": {}, "asked": {}, "answered": {}}
    state: dict[str, Any] = cell.state
    return state
