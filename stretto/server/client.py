"""An agent's side: its part goes to every slot, and what comes back are the values.

What was not answered is asked again when another epoch begins: holders have moved, and know what they have carried out
by its clock. A coded part is kept until then, since it can be coded once only.

An agent's *clock* counts the steps it has pushed. Who was not counted on, since it is new or had nothing to train, says
so when it begins, at the clock of the slowest of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import torch
from torch import Tensor

from stretto.codecs.identity import Identity
from stretto.core import Cell, Codec, Payload, State
from stretto.errors import ProtocolError
from stretto.server.messages import (
    CHANGED,
    COPIED,
    COPY,
    DEAL,
    END,
    FENCE,
    GRANTED,
    LEASE,
    LOAD,
    PAUSE,
    PULL,
    PUSH,
    READ,
    RETURN,
    SOME,
    WAIT,
    WHOLE,
    Request,
)
from stretto.server.space import Slot
from stretto.server.value import Server

_SLOWER: Final = 0.9
_QUICKER: Final = 1.02
_LEAST: Final = 1 / 64
"""How the size of the batches of a slow agent follows its place among the others."""
_FEWEST: Final = 2.0
"""Samples, if as many are asked for: a batch of one is what batch normalisation refuses."""


class Memory(Protocol):
    """Where an agent's parts and values lie, by slot."""

    def part(self, slot: Slot) -> Payload:
        """What the agent gives: all elements (1-d); or rows (int64) and their elements, of a table."""
        ...

    def values(self, slot: Slot) -> Tensor: ...


Ask = Callable[[int, Request, Payload], None]
"""Send a request about a slot where it belongs."""


@dataclass(slots=True)
class _Due:
    """One order of the trainer's: its requests by slot, and those that are not answered."""

    number: int
    requests: dict[int, tuple[Request, Payload]]
    open: set[int]


class Client:
    """``ended(number, about)``: an order of the trainer's is carried out; what is to be told it.

    ``lend(x)``: words by which others find ``x`` in memory that all see; None where they do not.
    """

    def __init__(
        self,
        me: int,
        slots: Sequence[Slot],
        server: Server,
        codec: Codec,
        cells: Sequence[Cell],
        memory: Memory,
        ended: Callable[[int, Tensor | None], None],
        lend: Callable[[Tensor], Tensor | None],
    ) -> None:
        self._me, self._slots, self._server, self._codec, self._cells = me, slots, server, codec, cells
        self._memory, self._ended, self._lend = memory, ended, lend
        self._ask: Ask | None = None
        self._clock = self._seen = self._fastest = 0
        self._pace = 1.0
        self._counted = server.staleness == 0
        self._have = [-1] * len(slots)
        self._pulled: list[State] = [None] * len(slots)
        self._values: _Due | None = None
        self._samples: tuple[int, Request, Payload] | None = None
        self._again = False
        self._lease = -1
        self._lent: dict[tuple[int, int], Tensor | None] = {}
        self.kept: dict[int, Tensor] = {}

    def values_of(self, slot: int) -> Tensor:
        """Where the values of a slot lie."""
        return self._memory.values(self._slots[slot])

    @property
    def waits(self) -> bool:
        """Is something not answered?"""
        return self._values is not None or self._samples is not None

    # What the trainer orders

    def push(self, number: int, weight: float, lease: int, hyper: Tensor) -> None:
        """Give our part of one step, and get what becomes of the values."""
        self._clock += 1
        requests = {}
        for slot in self._by_priority():
            about = Request(PUSH, self._me, self._clock, self._have[slot.number], weight, lease, hyper)
            requests[slot.number] = about, self._written(slot) if weight else ()
        self._begin(number, requests)
        if not self._counted:  # (who pushes, counts; we push what was left, and stop)
            self._say_whether_we_count()

    def pull(self, number: int) -> None:
        """Get the values as they are, to the bit."""
        self._begin(number, {s.number: (self._pull(s), self._place(s)) for s in self._by_priority()})

    def load(self, number: int, states: Mapping[int, Tensor]) -> None:
        """Let these slots be so (packed, uint8), and get their values."""
        self._begin(number, {slot: (Request(LOAD, self._me), (found,)) for slot, found in states.items()})

    def keep(self, number: int, rank: int, size: int) -> None:
        """Get a copy of every ``size``-th slot, from ``rank`` on: packed, in :attr:`kept`."""
        self.kept = {}
        ours = [slot.number for slot in self._slots if slot.number % size == rank]
        self._begin(number, {slot: (Request(COPY, self._me), ()) for slot in ours})

    def deal(self, number: int, passes: int, terms: Tensor) -> None:
        """A pass over the data begins; who says so first, says on what terms."""
        self._sample(number, Request(DEAL, self._me, passes), (terms.clone(),))

    def lease(self, number: int, terms: Sequence[float], wish: bool, fences: int) -> None:
        """Ask for samples.

        Args:
            terms: how many; whether we cannot push what we have without; whether we ask ahead, and will not wait.
            wish: all are to stop at a fence; ``fences``: that we have stopped at.
        """
        more = torch.tensor([max(min(_FEWEST, terms[0]), terms[0] * self._pace), *terms[1:]], dtype=torch.float64)
        self._sample(number, Request(LEASE, self._me, self._clock + 1, fences, float(wish), self._lease, more), ())

    def give_back(self, number: int, lease: int) -> None:
        """Those samples will not be trained here. (An epoch that ends before that is heard gives them back, or we do
        when we leave.)"""
        if self._ask is not None:
            self._ask(0, Request(RETURN, self._me, lease=lease), ())
        self._ended(number, None)

    def read(self, number: int) -> None:
        """What is trained?"""
        self._sample(number, Request(READ, self._me), ())

    # What happens

    def enter(self, ask: Ask) -> None:
        """Another epoch: what is not answered is asked again."""
        self._ask = ask
        due = self._values
        if due is not None:
            if self._server.staleness == 0:
                self._undo(due)
            for slot in [slot for slot in due.requests if slot in due.open]:
                request, body = due.requests[slot]
                ask(slot, request, body)
        self._say_whether_we_count()  # (who pushes, counts)
        self._ask_for_samples()

    def _ask_for_samples(self) -> None:
        self._again = False
        if self._samples is not None and self._ask is not None:
            _, request, body = self._samples
            self._ask(0, request, body)

    def leave(self) -> None:
        """The epoch is over. What was coded against what a holder knew of us begins anew."""
        self._ask = None
        if self._server.pull != Identity():
            self._have = [-1] * len(self._slots)

    def out(self) -> list[int]:
        """We are in no epoch any more; the orders that nobody will carry out."""
        self.leave()
        numbers = [due.number for due in (self._values,) if due is not None]
        numbers += [self._samples[0]] if self._samples is not None else []
        self._values = self._samples = None
        self._again = False
        self._counted = self._server.staleness == 0
        self._have = [-1] * len(self._slots)
        return numbers

    def answered(self, slot: int, payload: Payload) -> None:
        """Values of a slot.

        Raises:
            ProtocolError: they are none.
        """
        due = self._values
        if due is None or slot not in due.open:
            raise ProtocolError(f"slot {slot} answers what was not asked; this is a bug, please report it")
        kind, version, slowest, fastest = (int(x) for x in payload[0].tolist())
        if kind == COPIED:
            self.kept[slot] = payload[1].clone()
        else:
            self._take(self._slots[slot], kind, payload[1:])
            self._have[slot] = version
        self._seen, self._fastest = max(self._seen, slowest), max(self._fastest, fastest)
        due.open.remove(slot)
        self._close()

    def _close(self) -> None:
        """The order about values is carried out, if all have answered."""
        due = self._values
        if due is not None and not due.open:
            self._values = None
            self._keep_pace()
            if self._server.staleness == 0:
                self._clock = max(self._clock, self._seen)
            self._ended(due.number, None)
            if self._again:
                self._ask_for_samples()

    def leased(self, payload: Payload) -> None:
        """About samples.

        Raises:
            ProtocolError: nobody asked.
        """
        if self._samples is None:
            raise ProtocolError("samples come that were not asked for; this is a bug, please report it")
        number, request, _ = self._samples
        about = payload[0]
        if request.kind == LEASE and about[0] == WAIT and not request.more[2]:
            self._count(False)
            return
        if request.kind == LEASE and about[0] == END and self._values is not None and self._server.staleness == 0:
            self._again = True  # should the step under way be undone, somebody's part may be dealt again
            return
        self._samples = None
        if request.kind == LEASE and about[0] in (FENCE, END):
            self._count(False)
        elif request.kind == LEASE and about[0] == GRANTED:
            self._lease = int(about[2]) if about.numel() > 2 else -1
            self._count(True)
        self._ended(number, about)

    def _keep_pace(self) -> None:
        """Who holds the others up trains less at a time: else all would go at its pace for ever."""
        bound = self._server.staleness
        if bound and self._clock <= self._seen and self._fastest - self._clock >= bound:
            self._pace = max(_LEAST, self._pace * _SLOWER)
        elif bound and self._clock >= self._fastest:
            self._pace = min(1.0, self._pace * _QUICKER)

    # What is sent

    def _undo(self, due: _Due) -> None:
        """A step that some slots had made, and others not, is undone: what we had of it is nothing."""
        for slot in set(due.requests) - due.open:
            request, body = due.requests[slot]
            due.requests[slot] = replace(request, have=-1), body
        due.open |= set(due.requests)

    def _begin(self, number: int, requests: dict[int, tuple[Request, Payload]]) -> None:
        if not requests:
            self._ended(number, None)
            return
        self._values = _Due(number, requests, set(requests))
        if self._ask is not None:
            for slot, (request, body) in requests.items():
                self._ask(slot, request, body)

    def _sample(self, number: int, request: Request, body: Payload) -> None:
        self._samples = number, request, body
        if self._ask is not None:
            self._ask(0, request, body)

    def _count(self, counted: bool) -> None:
        """Are the others to wait for us, where they wait?"""
        if counted != self._counted and self._server.staleness != 0:
            self._counted = counted
            if counted:
                self._clock = max(self._clock, self._seen)
            self._say_whether_we_count()

    def _say_whether_we_count(self) -> None:
        if self._ask is None or not self._server.staleness:
            return
        at = self._clock - (self._values is not None)
        for slot in self._slots:
            self._ask(slot.number, Request(PAUSE, self._me, at, weight=float(self._counted)), ())

    def _by_priority(self) -> Sequence[Slot]:
        """What the next forward pass needs first goes first: buckets hold the last layers first."""
        return sorted(self._slots, key=lambda slot: -slot.bucket)

    def _pull(self, slot: Slot) -> Request:
        exact = self._server.pull == Identity()
        return Request(PULL, self._me, self._clock, self._have[slot.number] if exact else -1)

    def _written(self, slot: Slot) -> Payload:
        """Our part of a slot, as it travels."""
        part = self._memory.part(slot)
        if slot.width:
            return part
        if self._codec == Identity():
            lent = self._lent_to_all(slot.number, 0, part[0])
            return (*(part if lent is None else (lent,)), *self._place(slot))
        cell = self._cells[slot.number]
        before = cell.state if cell.state is not None else self._codec.init(cell.like)
        payload, cell.state = self._codec.encode(part[0], cell.like, before)
        _, cell.state = self._codec.decode(payload, cell.like, cell.state)
        return (*payload, *self._place(slot))

    def _place(self, slot: Slot) -> Payload:
        """Where the values belong, if whoever answers can see it."""
        exact = not slot.width and self._server.pull == Identity()
        lent = self._lent_to_all(slot.number, 1, self._memory.values(slot)) if exact else None
        return () if lent is None else (lent,)

    def _lent_to_all(self, slot: int, which: int, x: Tensor) -> Tensor | None:
        """Parts and values of a slot are always in the same place."""
        key = slot, which
        if key not in self._lent:
            self._lent[key] = self._lend(x)
        return self._lent[key]

    def _take(self, slot: Slot, kind: int, body: Payload) -> None:
        values = self._memory.values(slot)
        if kind == WHOLE and body:  # (else they have come to where they belong)
            if body[0].data_ptr() != values.data_ptr():
                values.copy_(body[0])
        elif kind == SOME:
            values.view(-1, slot.width)[body[0]] = body[1].view(-1, slot.width)
        elif kind == CHANGED:
            like = self._cells[slot.number].like
            before = self._pulled[slot.number]
            change, after = self._server.pull.decode(
                body, like, self._server.pull.init(like) if before is None else before
            )
            self._pulled[slot.number] = after
            values.add_(change.reshape(-1))
