"""A centre that lies in slices at all agents and moves as soon as a quorum has come by: nobody waits for the last.

Theory of operation (Douillard et al.: Decoupled DiLoCo for resilient distributed pre-training, 2026, arXiv 2604.21428).
There, learners train by themselves and send what they moved to a synchroniser, which merges once a minimum quorum has
come and a grace window is over, weighing by tokens. Here rank r synchronises slice r of n, so that all carry a part of
the traffic. What the grace is measured by, and what becomes of who is late, is our reading.

An agent's k-th visit belongs to round k. It sends each owner its drift on that slice, d = x - base, with base the
centre c as it was last given it, and waits for all. An owner closes round k when all have come, or when a quorum has
and, after that, ``grace`` of the time since the round before (or since the first came, in the first round). Then

    m = mean(drifts of round k, and late ones of rounds before)        c += step of the outer optimizer for m

and who waited is given c, and goes on from there. Windows have equal numbers of batches, which are dealt evenly: so a
plain mean of drifts is one by samples. Whose visit comes after its round was closed is answered at once with c as it
is, and its drift is kept for the next round. As every agent makes every visit, all come to each round sooner or later,
and whoever waits is answered: there is no deadlock, whatever the quorum.

Before an agreement of all, which forgets the centre, owners ``settle``: late drifts that no round has merged become
part of the owner's own x. Whose visit is late after that is told to keep its drift, and goes on from c + d. So the mean
of all x then holds each drift once: in c, or as it is.

What an owner answers with is not c, but what brings the agent there from what it was given before, which the owner
remembers of each. So what a lossy codec loses of one answer is in the next (as in EF21, Richtarik et al. 2021, arXiv
2106.05203), and base is the same at both ends. Answers are each coded for themselves: what a codec with feedback held
back would come twice.

Tensors are drifts from where all agreed last, so a centre begins at zero: there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from stretto.core import Cell, Codec, Like, Link, mixed
from stretto.errors import UsageError
from stretto.exchanges.apart import check_apart, written
from stretto.exchanges.asking import Question, ask, listen
from stretto.exchanges.owners import Part, parts_of
from stretto.outers import Nesterov
from stretto.text import named
from stretto.topologies.ring import Ring

_BACK: Final = 1
"""An owner draws otherwise for its answers than for what it sends."""
_SLOWER: Final = 1.1
"""So much longer is each look at a round than the one before: it is seen to be closed at most a tenth too late."""


@named("quorum", kind="mixing")
@dataclass(frozen=True)
class Quorum:
    """Outer steps of Nesterov's, each for the mean drift of at least ``quorum`` of the agents.

    An agent sends (n-1)/n of its tensor a visit, and as much in answers to others; it remembers of the centre what it
    was given, and of its own slice what each agent was: two tensors.
    """

    quorum: float = 0.5
    grace: float = 0.1
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    kind: ClassVar[str] = "mixing"

    def __post_init__(self) -> None:
        if not 0 < self.quorum <= 1:
            raise UsageError(f"quorum={self.quorum} is a share of the agents, above 0 and at most 1; 0.5 would do")
        if not 0 <= self.grace < math.inf:
            raise UsageError(f"grace={self.grace} is a share of a round's time, from 0 on; 0.1 would do")
        Nesterov(self.outer_lr, self.outer_momentum)

    async def mix(self, link: Link, x: Tensor, codec: Codec, cell: Cell, clock: int) -> Tensor:
        """The centre after this visit's round, or as it is if that was closed before.

        Raises:
            PeerLost: somebody who holds a slice of the centre is gone.
            NonFinite: ``x`` holds NaN or infinity, which the codec cannot send.
            UsageError: the codec's payloads cannot be read one by one.
        """
        state = _state(link, codec, cell)
        state["visits"] += 1
        state["settled"] = False
        out: Tensor = x - state["base"]
        parts = enumerate(_parts(link, cell))
        await link.together(*(self._visit(link, out[p.start : p.stop], p, i, codec, cell) for i, p in parts))
        await self._own(link, out, state)
        return out.add_(state["base"])

    async def _visit(self, link: Link, drift: Tensor, part: Part, number: int, codec: Codec, cell: Cell) -> None:
        """Leave ``drift`` at the owner of ``part``, and zero in its place, unless it is ours to keep."""
        state = cell.state
        if part.owner == link.rank:
            await self._bring(link, link.rank, drift.clone(), state["visits"], codec, cell)
            return
        like, key = cell.like.part(part.start, part.stop, number), str(number)
        before = state["sending"].get(key) or codec.init(like)
        payload, _, after = written(drift.clone(), codec, like, before)
        state["sending"][key] = after
        keep, *answer = await ask(link, part.owner, payload, state["asked"])
        change, _ = codec.decode(tuple(answer), like, after)
        state["base"][part.start : part.stop] += change
        if keep:
            state["sending"][key] = before
        else:
            drift.zero_()

    async def _own(self, link: Link, out: Tensor, state: dict[str, Any]) -> None:
        """Our own slice, which is seldom the last to close."""
        mine, pause = slice(*state["mine"]), link.network.delay
        while mine.start < mine.stop and state["closed"] < state["visits"]:
            await link.sleep(pause)
            pause *= _SLOWER
        state["base"][mine] = state["centre"]
        out[mine] = 0

    async def serve(self, link: Link, codec: Codec, cell: Cell) -> None:
        """Take whoever's drifts of our slice of the centre, and give them that.

        Each agent asks for one thing at a time, so with a listener for each none waits behind another's grace.

        Raises:
            PeerLost: nobody is left.
            DamagedPayload: an agent sent what cannot be decoded.
        """
        if any(p.owner == link.rank for p in _parts(link, cell)):
            await link.together(*(self._listen(link, codec, cell) for _ in range(link.size - 1)))

    async def _listen(self, link: Link, codec: Codec, cell: Cell) -> None:
        while True:
            question = await listen(link)
            state = _state(link, codec, cell)
            like = _slice(link, cell)
            drift, _ = codec.decode(question.payload, like, codec.init(like))
            if state["settled"] and question.number <= state["closed"]:
                _give(link, question.asker, question.number, codec, cell, keep=True)
            else:
                await self._bring(link, question.asker, drift, question.number, codec, cell)

    async def _bring(self, link: Link, rank: int, drift: Tensor, number: int, codec: Codec, cell: Cell) -> None:
        """Merge it in the round of this ``number``, or in the next that is closed; who completes a quorum waits."""
        state = cell.state
        if number <= state["closed"]:
            state["late"].append(drift)
            if rank != link.rank:
                _give(link, rank, number, codec, cell)
            return
        state["open"][rank] = drift
        now = link.now()
        state["since"] = now if state["since"] is None else state["since"]
        if len(state["open"]) == self._least(link.size) < link.size:
            await link.sleep(max(0.0, self.grace * (now - state["since"])))
        elif len(state["open"]) < link.size:
            return
        if state["closed"] < number:
            self._close(link, codec, cell)

    def _close(self, link: Link, codec: Codec, cell: Cell) -> None:
        state = cell.state
        came, state["open"] = dict(sorted(state["open"].items())), {}
        late, state["late"] = state["late"], []
        mean = torch.stack([*came.values(), *late]).mean(0)
        step, state["outer"] = Nesterov(self.outer_lr, self.outer_momentum).update(mean, state["outer"])
        state["centre"] = state["centre"] + step
        state["closed"], state["since"] = state["closed"] + 1, link.now()
        for rank in came:
            if rank != link.rank:
                _give(link, rank, state["closed"], codec, cell)

    def _least(self, size: int) -> int:
        """How many make a quorum; what floats add to a whole number does not count."""
        return math.ceil(self.quorum * size - 1e-9)

    def settle(self, cell: Cell) -> Tensor | None:
        """Late drifts of our slice that no round has merged. Who is late from now on keeps its own.

        To be called between two visits; what comes of it is to be added to the tensor.
        """
        if cell.state is None:
            return None
        cell.state["settled"] = True
        late, cell.state["late"] = cell.state["late"], []
        if not late:
            return None
        owed = torch.zeros(cell.like.numel, dtype=cell.like.dtype)
        owed[slice(*cell.state["mine"])] = torch.stack(late).sum(0)
        return owed


def _parts(link: Link, cell: Cell) -> tuple[Part, ...]:
    return parts_of(Ring(), link.hosts, cell.like.numel)


def _slice(link: Link, cell: Cell) -> Like:
    """What our slice of the centre is like, as those see it who send us drifts of it."""
    number, part = next((i, p) for i, p in enumerate(_parts(link, cell)) if p.owner == link.rank)
    return cell.like.part(part.start, part.stop, number)


def _give(link: Link, rank: int, number: int, codec: Codec, cell: Cell, *, keep: bool = False) -> None:
    """Answer a question with what brings ``rank`` to the centre; it is to ``keep`` its drift, or we have that."""
    state, like = cell.state, _slice(link, cell)
    back = replace(like, own=mixed(like.own, _BACK, rank, number))
    given = state["given"].get(rank, torch.zeros_like(state["centre"]))
    payload, change, _ = written(state["centre"] - given, codec, back, codec.init(back))
    state["given"][rank] = given + change
    Question(rank, number, ()).answer(link, (torch.tensor([keep]), *payload), state["answered"])


def _state(link: Link, codec: Codec, cell: Cell) -> dict[str, Any]:
    """What we were given and sent, and our slice of the centre. ``mix`` and ``serve`` share it.

    ``mine`` is where our slice lies; ``closed`` is the last round closed there, at ``since``; ``open`` has the drifts
    of the next by rank, and ``late`` those of rounds before; ``given`` is what each was given of it.
    """
    if cell.state is None:
        check_apart(codec, "quorum")
        mine = next(([p.start, p.stop] for p in _parts(link, cell) if p.owner == link.rank), [0, 0])
        ours = {"visits": 0, "base": torch.zeros(cell.like.numel, dtype=cell.like.dtype), "sending": {}, "asked": {}}
        centre = torch.zeros(mine[1] - mine[0], dtype=cell.like.dtype)
        served = {"mine": mine, "centre": centre, "outer": None, "closed": 0, "since": None, "settled": False}
        cell.state = {**ours, **served, "open": {}, "late": [], "given": {}, "answered": {}}
    state: dict[str, Any] = cell.state
    return state
