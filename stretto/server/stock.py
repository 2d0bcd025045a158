"""One slot at one holder, with all that is decided there: a state machine without I/O.

The same requests in the same order make the same state at every holder of a chain. The slot with number 0 also deals
the samples, and says when all are to stop at a fence.

What agents wait for (values that their bound does not allow yet, samples that are not free yet) is no state: they ask
again when another epoch begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from stretto import state
from stretto.core import Codec, Like, Payload
from stretto.errors import ProtocolError
from stretto.ledger import Ledger
from stretto.server.leases import Lease, Leases
from stretto.server.messages import (
    DEAL,
    END,
    FENCE,
    GRANTED,
    LEASE,
    LOAD,
    PAUSE,
    PUSH,
    RETURN,
    WAIT,
    Request,
    numbers,
)
from stretto.server.rules import Rule
from stretto.server.shard import Shard
from stretto.server.space import Slot
from stretto.server.update import Push, Rows
from stretto.server.value import Server


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is dealt: from ``ledger`` on, ``batch_size`` samples an agent and step, for so many epochs.

    ``meet``: all stop at a fence when so many more samples are trained; 0: only when somebody wishes.
    """

    ledger: Ledger
    batch_size: int
    epochs: int
    meet: int = 0


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is told at a fence: the ledger, and how often each staleness was met by pushes to the first slot."""

    ledger: Ledger | None
    staleness: dict[int, int]


@dataclass(frozen=True, slots=True)
class Reply:
    """To ``uid``: its ``request`` is carried out; ``about`` is what was decided about samples, else it gets values."""

    uid: int
    request: Request
    about: Tensor | None = None


class Stock:
    """``like``: of the slot's elements, for ``codec``, by which pushes come. ``values`` (1-d) are where it begins.

    ``changes`` counts what was carried out and is no push.
    """

    def __init__(self, slot: Slot, server: Server, rule: Rule, codec: Codec, like: Like, values: Tensor) -> None:
        self.slot = slot
        self.shard = Shard(slot, server, rule, values)
        self.fences = self.changes = 0
        self._rule, self._server, self._codec, self._like = rule, server, codec, like
        self._coding = codec.init(like)
        self._members: tuple[int, ...] = ()
        self._passes = self._meet = self._met = 0
        self._leases: Leases | None = None
        self._waiting: dict[int, Request] = {}
        self._asking: dict[int, Request] = {}
        self._told: set[int] = set()

    @property
    def version(self) -> int:
        return self.shard.version

    @property
    def known(self) -> Known:
        """What is trained, and how stale gradients were."""
        ledger = self._leases.ledger if self._leases is not None else None
        return Known(ledger, dict(self.shard.staleness))

    def enter(self, members: tuple[int, ...], clock: int | None) -> None:
        """Another epoch begins, of these members (uids by rank); ``clock``: to which all slots go back."""
        self._waiting.clear()
        self._asking.clear()
        self._told.clear()
        self._members = members
        if clock is not None:
            self.shard.settle(clock)
            if self._leases is not None:
                self._leases.settle(clock)
        new = [uid for uid in members if uid not in self.shard.clocks]
        self.shard.enter(members, floor=0)
        if self._server.staleness != 0:
            for uid in new:
                self.shard.pause(uid)
        if self._leases is not None:
            self._leases.enter(members)

    def apply(self, request: Request, body: Payload) -> list[Reply]:
        """Carry ``request`` out; what can be answered now, of it and of those before it.

        Raises:
            ProtocolError: it does not fit this slot.
            DamagedPayload: it cannot be decoded.
        """
        self.changes += request.kind in {LEASE, RETURN, DEAL, LOAD}
        match request.kind:
            case _ if request.uid not in self._members:
                raise ProtocolError(f"slot {self.slot.number} is asked by {request.uid}, who is no member")
            case kind if kind == PUSH:
                self._push(request, body)
            case kind if kind == PAUSE and request.weight:
                self.shard.resume(request.uid, request.clock)
            case kind if kind == PAUSE:
                self.shard.pause(request.uid)
            case kind if kind == LEASE:
                self._asking[request.uid] = request
                self._told.discard(request.uid)
            case kind if kind == RETURN and self._leases is not None:
                self._leases.give_back(request.uid, request.lease)
            case kind if kind == DEAL:
                self._deal(request, body)
                return [Reply(request.uid, request, numbers(GRANTED, self.fences))]
            case kind if kind == LOAD:
                self._begin(state.unpack(body[0]))
                self._waiting[request.uid] = request
        return [*self._answered(), *self._dealt()]

    def state(self) -> dict[str, Any]:
        """All of it, in plain values."""
        return {
            "shard": self.shard.state(),
            "fences": self.fences,
            "changes": self.changes,
            "passes": self._passes,
            "meet": [self._meet, self._met],
            "leases": self._leases.state() if self._leases is not None else None,
        }

    def load(self, found: dict[str, Any]) -> None:
        """Be as another one of this slot's."""
        self.shard.load(found["shard"])
        self.fences, self.changes = found["fences"], found["changes"]
        self._passes, leases = found["passes"], found["leases"]
        self._meet, self._met = found["meet"]
        self._leases = Leases.of(leases, static=self._server.staleness == 0) if leases is not None else None

    def _begin(self, found: dict[str, Any]) -> None:
        """Another run, or this one, had these values: go on from there. What it dealt is dealt anew."""
        self.shard.load(found["shard"])
        self.shard.enter(self._members, floor=0)
        for uid in self._members if self._server.staleness != 0 else ():
            self.shard.pause(uid)
        self._passes = self.fences = 0
        self._leases = None

    # Values

    def _push(self, request: Request, body: Payload) -> None:
        uid, leases = request.uid, self._leases
        push = Push(uid, request.clock, request.have, request.weight, request.more, request.lease)
        fresh = self.shard.push(push, self._update(request, body))
        self._waiting[uid] = request
        if fresh and leases is not None:
            for number in leases.out_to(uid):
                if number <= request.lease:
                    leases.commit(uid, number)

    def _update(self, request: Request, body: Payload) -> Tensor | Rows:
        slot = self.slot
        if slot.width:
            if not body:
                return Rows(torch.zeros(0, dtype=torch.int64), torch.zeros(0, slot.width, dtype=self._like.dtype))
            if len(body) != 2:
                raise ProtocolError(f"slot {slot.number} is a table: {request.uid} pushes no rows")
            return Rows(body[0], body[1].view(-1, slot.width))
        if not body:
            return torch.zeros(slot.stop - slot.start, dtype=self._like.dtype)
        x, self._coding = self._codec.decode(body, self._like, self._coding)
        return x.reshape(-1)

    def _answered(self) -> list[Reply]:
        replies = []
        for uid, request in list(self._waiting.items()):
            if request.kind == LOAD or self.shard.may(uid, request.clock):
                del self._waiting[uid]
                self.shard.sent(uid)
                replies.append(Reply(uid, request))
        return replies

    # Samples

    def _deal(self, request: Request, body: Payload) -> None:
        """Pass ``request.clock`` over the data begins, unless somebody has begun it."""
        if request.clock <= self._passes:
            return
        self._passes = request.clock
        terms = msgspec.json.decode(bytes(body[0].numpy()), type=Terms)
        self._leases = Leases(terms.ledger, terms.batch_size, terms.epochs, static=self._server.staleness == 0)
        self._leases.enter(self._members)
        self._meet, self._met = terms.meet, terms.ledger.trained

    def _dealt(self) -> list[Reply]:
        """To whom something can be said about samples now."""
        if not self._asking:
            return []
        leases = self._leases
        over = leases is not None and leases.over
        wished = any(r.weight > 0 and r.have == self.fences for r in self._asking.values())
        if leases is not None and self._meet and leases.ledger.trained // self._meet > self._met // self._meet:
            self._met, wished = leases.ledger.trained, True
        if wished and not over:
            self.fences += 1
        replies = []
        for uid, request in list(self._asking.items()):
            about = self._about(uid, request)
            if about is None and uid in self._told:
                continue
            if about is None:
                self._told.add(uid)
                about = numbers(WAIT, self.fences)
            if about[0] != WAIT or request.more[2]:
                del self._asking[uid]
            replies.append(Reply(uid, request, about))
        return replies

    def _about(self, uid: int, request: Request) -> Tensor | None:
        """What becomes of an agent's wish for samples; None: it waits. ``have``: fences that it has stopped at."""
        leases = self._leases
        if request.have < self.fences and not (leases is not None and leases.begun(request.clock)):
            return numbers(FENCE, self.fences)
        if leases is None:
            return numbers(GRANTED, self.fences)
        if leases.over:
            return numbers(END, self.fences)
        lease = leases.held(uid, request.lease) or leases.lease(uid, request.clock, int(request.more[0]))
        if lease is not None:
            return written(lease, self.fences)
        idle = {other for other, asked in self._asking.items() if asked.more[1]}
        return numbers(END, self.fences) if leases.holders <= idle else None


def written(lease: Lease, fences: int) -> Tensor:
    """A lease as numbers."""
    edges = [edge for piece in lease.ranges for edge in piece]
    return numbers(GRANTED, fences, lease.number, lease.epoch, lease.share, lease.last, *edges)


def read_lease(about: Tensor) -> Lease:
    """The lease that :func:`written` wrote."""
    number, epoch, share, last, *edges = about[2:].tolist()
    ranges = tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))
    return Lease(int(number), int(epoch), ranges, share, bool(last))
