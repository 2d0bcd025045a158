"""Pairs that average as they meet, and nobody waits for another's trainer: AD-PSGD without locks.

Theory of operation (Lian, Zhang, Zhang, Liu: Asynchronous decentralized parallel stochastic gradient descent, ICML
2018, arXiv 1710.06952, algorithm 1). There, an agent and a neighbour replace both of their weights by the average of
the two, at once: which takes a lock, and a graph in two halves lest locks wait in a circle. Here an averaging is two
additions that cancel,

    d = (q_j - q_i) / 2        P_i += d  at the agent that asks        P_j -= d  at the one that is asked

with P what an agent publishes and q what the payload of it decodes to, the same bytes for both. An addition commutes
with all that happens between the question and its answer: steps of the trainers, and other averagings. So no order of
events loses one or applies one twice, and the sum over agents stays what the trainers made it, but for the rounding of
additions: whatever the codec loses is lost of both alike. If nothing happens in between, the two then differ by
q_i's error less q_j's: with an exact codec by nothing.

Questions that cross would swap two agents' tensors in place of averaging them, at every turn where the two are equally
quick. So an agent whose own question to the asker is under way declines, if it is of the lower rank: what is averaged
is for the answerer alone to say, and one of the two questions counts.

The asked agent's server changes P while its trainer is elsewhere, and keeps what it added in ``owed``. The trainer's
next visit starts from its own tensor and that, P = x + owed, and what comes back to it holds all that was added until
then. An agent that has published nothing (or no more) declines, too, and nothing happens.

A visit's peer is drawn evenly, by each agent by itself. Staleness: P is what the trainer had at its last visit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stretto.core import Cell, Codec, Link, Payload, mixed
from stretto.exchanges.apart import check_apart, written
from stretto.exchanges.asking import ask, listen
from stretto.text import named


@named("pairs", kind="mixing")
@dataclass(frozen=True)
class Pairs:
    """Average with one random peer, which answers while it trains.

    An agent sends its tensor once a visit, and once for each visit that it is asked for: two on average.
    """

    kind: ClassVar[str] = "mixing"

    async def mix(self, link: Link, x: Tensor, codec: Codec, cell: Cell, clock: int) -> Tensor:
        """``x`` with all that this averaging and those of others since the last visit have added to it.

        One visit at a time: the next one's ``x`` holds what came of this one.

        Raises:
            PeerLost: the peer that was drawn is gone.
            NonFinite: ``x`` holds NaN or infinity, which the codec cannot send.
            UsageError: the codec's payloads cannot be read one by one.
        """
        if link.size == 1:
            return x.clone()
        state = _state(cell, codec)
        peer = (link.rank + 1 + mixed(cell.like.own, clock) % (link.size - 1)) % link.size
        value: Tensor = x.clone() if state["owed"] is None else x + state["owed"]
        payload, mine, state["codec"] = written(value, codec, cell.like, state["codec"])
        state["value"], state["owed"], state["asking"] = value, None, peer
        answer = await ask(link, peer, payload, state["asked"])
        state["asking"] = None
        if answer:
            _add(state, _half(codec, answer, mine, cell))
        state["owed"] = None
        value = state["value"].clone()
        return value

    async def serve(self, link: Link, codec: Codec, cell: Cell) -> None:
        """Answer whoever asks with what is published here, and add to that what the asker subtracts.

        Raises:
            PeerLost: nobody is left.
            DamagedPayload: an agent sent what cannot be decoded.
        """
        if link.size == 1:
            return
        while True:
            question = await listen(link)
            state, peer = _state(cell, codec), question.asker
            if state["value"] is None or (state["asking"] == peer and link.rank < peer):
                question.answer(link, (), state["answered"])
                continue
            payload, mine, state["codec"] = written(state["value"], codec, cell.like, state["codec"])
            _add(state, _half(codec, question.payload, mine, cell))
            question.answer(link, payload, state["answered"])

    def settle(self, cell: Cell) -> Tensor | None:
        """What others have added since the last visit, and its trainer does not have yet. No more is published.

        To be called between two visits, before an agreement of all; what comes of it is to be added to the tensor.
        """
        if cell.state is None:
            return None
        owed: Tensor | None = cell.state["owed"]
        cell.state["value"] = cell.state["owed"] = None
        return owed


def _state(cell: Cell, codec: Codec) -> dict[str, Any]:
    """What is published and owed; whom we are asking; how often each was asked, and answered.

    ``mix`` and ``serve`` share it.
    """
    if cell.state is None:
        check_apart(codec, "pairs")
        init = codec.init(cell.like)
        cell.state = {"value": None, "owed": None, "asking": None, "codec": init, "asked": {}, "answered": {}}
    state: dict[str, Any] = cell.state
    return state


def _half(codec: Codec, theirs: Payload, mine: Tensor, cell: Cell) -> Tensor:
    """Half of the way from ours to theirs: the same numbers at both, but for the sign."""
    return (codec.decode(theirs, cell.like, cell.state["codec"])[0] - mine).mul_(0.5)


def _add(state: dict[str, Any], change: Tensor) -> None:
    """As new memory: what is published may be on its way to somebody."""
    state["value"] = state["value"] + change
    state["owed"] = change if state["owed"] is None else state["owed"] + change
