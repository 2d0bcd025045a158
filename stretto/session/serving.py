"""A session's part in a parameter server: it pushes for its trainer, and holds slots for all.

In every epoch all agree anew on who holds what (:mod:`stretto.server.settlement`), give each other what they lack, and
go on: holders answer whoever asks, and what our trainer ordered and nobody answered is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from stretto import state
from stretto.core import Cell, Epoch, Link, Payload
from stretto.errors import PeerLost, RunLost, StrettoError
from stretto.server.client import Client
from stretto.server.messages import ANSWER, LEASED, PAUSE, REQUEST, STATE, TAKEN, VALUES, WHOLE, Request
from stretto.server.replica import Replica, serve
from stretto.server.settlement import Copy, Plan, Report, Spec, settle
from stretto.server.space import Slot
from stretto.server.stock import Stock
from stretto.session.carrier import as_ours
from stretto.session.held import REAL, Held, Makers, Parts
from stretto.session.lanes import Layout
from stretto.session.metered import Meter
from stretto.session.rounds import Cancel, Closing, settle_number, slot_number
from stretto.session.surroundings import Orderer, Surroundings

_NOTHING: Final = 20
"""A tag by which nothing comes."""


class Serving:
    """One process's part. ``me`` is its uid; ``refuse(error)``: nothing can be carried out any more."""

    def __init__(
        self,
        me: int,
        around: Surroundings,
        trainer: Orderer,
        meter: Meter,
        refuse: Callable[[StrettoError], None],
        makers: Makers = REAL,
        *,
        serves: bool = False,
    ) -> None:
        self._me, self._around, self._trainer, self._meter, self._refuse = me, around, trainer, meter, refuse
        self._makers, self._serves = makers, serves
        self._inside = False
        self._epoch: Epoch | None = None
        self._rank = 0
        self._held: Held | None = None
        self._parts = Parts(())
        self._client: Client | None = None
        self._plan: Plan | None = None
        self._stocks: dict[int, Stock] = {}
        self._places: dict[int, int] = {}
        self._entered = self._force = self._known = 0
        self._lacking: set[int] = set()
        self._replicas: dict[int, Replica] = {}
        self._early: dict[int, list[tuple[Request, Payload]]] = {}
        self._running: list[Cancel] = []
        self._gone: set[int] = set()
        self._told: dict[int, Tensor] = {}
        self._found: dict[int, Tensor] | None = None

    def use(self, spec: Spec, layouts: Sequence[Layout], values: Sequence[Tensor]) -> None:
        """This agent pushes what is laid out like this, and gets ``values``."""
        held = self._held = Held(spec, self._meter, self._makers.stock)
        self._parts = Parts(values)
        cells = [Cell(held.like(slot, layouts, self._me)) for slot in held.slots]
        self._client = self._makers.client(
            self._me, held.slots, held.server, held.codec, cells, self._parts, self._ended, self._around.lend
        )
        self._begin()

    # What the trainer orders

    def push(self, number: int, weight: float, lease: int, hyper: Tensor, parts: Sequence[Payload]) -> None:
        """Push ``parts``, by bucket; what becomes of the values comes back."""
        if self._is_inside(number):
            self._parts.parts = parts
            self._carefully(lambda: self._asking.push(number, weight, lease, hyper))

    def ask(self, number: int, what: str, x: Tensor, clock: int = 0) -> None:
        """``pull``, ``load`` or ``keep`` values; ``deal``, ``lease``, ``return`` or ``read`` about samples.

        ``load``: they are to be what we have; ``keep``: our part of all, for a checkpoint.
        What is said about samples comes in ``x``: its bytes, then that.
        """
        if self._is_inside(number):
            self._told[number] = x
            self._carefully(lambda: self._carry_out(number, what, x, clock))

    def _carry_out(self, number: int, what: str, x: Tensor, clock: int) -> None:
        client = self._asking
        match what:
            case "pull":
                client.pull(number)
            case "load":
                client.load(number, self._to_load())
            case "deal":
                client.deal(number, clock, x)
            case "lease":
                batch, wish, fences, idle, ahead = x[:5].tolist()
                client.lease(number, [batch, idle, ahead], bool(wish), int(fences))
            case "read":
                client.read(number)
            case "return":
                client.give_back(number, int(x[0]))
            case "keep":
                rank, size = x[:2].tolist()
                client.keep(number, int(rank), int(size))

    @property
    def _asking(self) -> Client:
        assert self._client is not None
        return self._client

    def _is_inside(self, number: int) -> bool:
        if not self._inside:
            self._trainer.done(number, Closing(0, alone=True))
        return self._inside

    # What the session does

    def enter(self, epoch: Epoch, rank: int) -> None:
        """Another epoch begins."""
        if not self._inside:
            self._entered = epoch.number
        self._epoch, self._rank, self._inside = epoch, rank, True
        self._begin()

    def stop(self) -> None:
        """This epoch is over."""
        for cancel in self._running:
            cancel()
        self._running.clear()
        self._replicas.clear()
        self._early.clear()
        self._gone.clear()
        self._epoch = self._plan = None
        if self._client is not None:
            self._client.leave()

    def out(self) -> None:
        """We are in no epoch any more. What we hold is kept: if we are let in again, it may be the last copy."""
        self.stop()
        self._inside = False
        for number in self._client.out() if self._client is not None else ():
            self._trainer.done(number, Closing(0, alone=True))

    def refused(self, error: StrettoError) -> None:
        """Nothing can be carried out any more."""
        for number in self._client.out() if self._client is not None else ():
            self._trainer.failed(number, error)

    def remembered(self) -> dict[str, Any]:
        """What was kept last, in plain values: this agent's part of the slots."""
        kept = self._client.kept if self._client is not None else {}
        return {str(number): slot for number, slot in kept.items()}

    def restore(self, parts: Sequence[Mapping[str, Any]]) -> None:
        """What is loaded next is this."""
        self._found = {int(number): found for part in parts for number, found in part.items()} or None

    # How an epoch begins

    def _begin(self) -> None:
        epoch = self._epoch
        if epoch is None or not (self._serves or self._client):
            return
        copies = {n: Copy(stock.version, stock.changes, self._places[n]) for n, stock in self._stocks.items()}
        spec = self._held.spec if self._held is not None else None
        lacking = tuple(sorted(self._lacking))
        report = Report(self._me, self._serves, spec, self._entered, self._force, self._known, copies, lacking)
        terms = lambda spec: Held(spec, self._meter).terms  # noqa: E731
        self._run(settle(self._meeting(), report, terms, self._learn), self._settled)

    def _learn(self, plan: Plan) -> None:
        """Who is to hold what; not all know it yet."""
        assert self._epoch is not None
        self._known = self._epoch.number
        if self._held is None:
            self._held = Held(plan.spec, self._meter, self._makers.stock)
        held, me = self._held, self._rank
        for slot in held.slots:
            number, chain, having = slot.number, plan.chains[slot.number], plan.having[slot.number]
            if me in chain and not having:
                self._stocks[number] = held.stock(slot)
            elif me not in plan.good[number]:
                self._forget(number)
            if number in self._stocks:
                latest = me in having or not having
                self._places[number] = chain.index(me) if latest and me in chain else -1
                if latest:
                    self._stocks[number].enter(plan.members, plan.clock)
        self._lacking = {number for number in range(len(held.slots)) if me in plan.lacking(number)}
        has = [number for number, place in sorted(self._places.items()) if place >= 0]
        self._around.event("slots", held=has, of=len(plan.chains))

    def _forget(self, number: int) -> None:
        self._stocks.pop(number, None)
        self._places.pop(number, None)

    def _settled(self, plan: Plan) -> None:
        """All know who holds what."""
        assert self._held is not None
        self._force = self._known
        for slot in self._held.slots:
            self._give(slot.number, plan)
            if self._rank in plan.chains[slot.number]:
                self._hold(slot, plan)
        for peer in {rank for chain in plan.chains for rank in chain} - {self._rank}:
            self._watch(peer)
        if self._client is not None:
            for number, chain in enumerate(plan.chains):
                if chain:
                    self._listen(number, chain[-1])
            self._plan, client = plan, self._client
            self._carefully(lambda: client.enter(self._ask))

    def _give(self, number: int, plan: Plan) -> None:
        """Give a slot to those who lack it; where we hold it no more, forget it when they have it."""
        if self._rank not in plan.good[number]:
            return
        link, waiting = self._link(number), {self._rank, *plan.lacking(number)} - {self._rank}
        if self._rank == plan.having[number][0] and waiting:
            payload = (state.packed(self._stocks[number].state()),)
            for peer in waiting:
                link.post(peer, payload, STATE)

        def taken(peer: int, _: object = None) -> None:
            waiting.discard(peer)
            if not waiting and self._places.get(number) == -1 and number not in self._lacking:
                self._forget(number)

        for peer in sorted(waiting):
            self._run(_receive(link, peer, TAKEN), partial(taken, peer))
        taken(self._rank)

    def _hold(self, slot: Slot, plan: Plan) -> None:
        """Serve a slot, as soon as we have it."""
        assert self._held is not None
        number, held = slot.number, self._held
        if number not in self._lacking:
            self._serve(slot, plan)
            return
        link, good = self._link(number), plan.good[number]

        def took(payload: Payload) -> None:
            stock = held.stock(slot)
            stock.load(state.unpack(payload[0]))
            stock.enter(plan.members, None)
            self._stocks[number] = stock
            self._lacking.discard(number)
            for peer in good:
                if peer != self._rank:
                    link.post(peer, (torch.zeros(1),), TAKEN)
            self._around.event("slot", held=[number], version=stock.version)
            self._serve(slot, plan)

        self._run(_receive(link, plan.having[number][0], STATE), took)

    def _serve(self, slot: Slot, plan: Plan) -> None:
        number, link, epoch, held = slot.number, self._link(slot.number), self._epoch, self._held
        assert epoch is not None and held is not None
        self._places[number] = plan.chains[number].index(self._rank)
        replica = self._replicas[number] = Replica(
            self._stocks[number],
            held.pull,
            held.like(slot),
            plan.chains[number],
            epoch.uids,
            self._rank,
            lambda rank, payload, tag: self._send(number, rank, payload, tag),
            lambda: link.idle,
            self._around.borrow,
        )
        for request, body in self._early.pop(number, ()):
            replica.receive(request, body)
        if epoch.size > 1:
            self._run(serve(link, replica))

    # What goes to and fro

    def _ask(self, number: int, request: Request, body: Payload) -> None:
        """Our own request, to the first of the slot's chain, or, where nothing is changed, to the last."""
        assert self._plan is not None
        chain = self._plan.chains[number]
        if not chain and request.kind == PAUSE:
            return  # (nobody is left there to wait for us)
        if not chain:
            raise RunLost(
                f"slot {number} of the model is gone: all who held a copy were lost together; go on from the last "
                "checkpoint, and keep more copies (replicas=3) if that may happen again"
            )
        place = chain[0 if request.changes else -1]
        if place != self._rank:
            self._link(number).post(place, (request.head(), *body), REQUEST)
        elif number in self._replicas:
            self._replicas[number].receive(request, body)
        else:
            self._early.setdefault(number, []).append((request, body))
        for peer in self._gone:
            self._around.missed(peer)

    def _send(self, number: int, rank: int, payload: Payload, tag: int) -> None:
        if rank != self._rank:
            self._link(number).post(rank, payload, tag)
        else:
            self._heard(number, payload, tag)

    def _heard(self, number: int, payload: Payload, tag: int) -> None:
        if tag == LEASED:
            self._asking.leased(payload)
        else:
            self._asking.answered(number, payload)

    def _listen(self, number: int, last: int) -> None:
        """Hear what the last of a slot's chain answers."""
        if last == self._rank:
            return
        link = self._link(number)
        values = self._asking.values_of(number)
        self._run(_hear_values(link, last, values, lambda payload: self._heard(number, payload, ANSWER)))
        if number == 0:
            self._run(_hear(link, last, LEASED, lambda payload: self._heard(number, payload, LEASED)))

    def _watch(self, peer: int) -> None:
        """Who has left with a goodbye is missed when we ask for something, and are not answered."""

        def ended(value: Any, error: BaseException | None) -> None:
            if isinstance(error, PeerLost):
                self._gone.add(peer)
                if self._client is not None and self._client.waits:
                    self._around.missed(peer)

        self._running.append(self._around.spawn(_receive(self._meeting(), peer, _NOTHING), ended))

    def _meeting(self) -> Link:
        """Of all members of this epoch."""
        return self._around.link(settle_number(), whole=True)

    def _ended(self, number: int, about: Tensor | None) -> None:
        x = self._told.pop(number, None)
        if x is not None and about is not None:
            raw = about.view(torch.uint8)
            whole = torch.cat([torch.tensor([raw.numel()]).view(torch.uint8), raw])
            x.view(torch.uint8)[: whole.numel()] = whole
        self._trainer.done(number, None)

    def _link(self, number: int) -> Link:
        return self._around.link(slot_number(number), whole=True)

    def _run(self, work: Coroutine[Any, Any, Any], then: Callable[[Any], None] = lambda value: None) -> None:
        def ended(value: Any, error: BaseException | None) -> None:
            if error is None:
                self._carefully(lambda: then(value))
            elif isinstance(error, PeerLost):
                self._around.missed(error.peer)
            else:
                self._refuse(as_ours(error))

        self._running.append(self._around.spawn(work, ended))

    def _carefully(self, what: Callable[[], None]) -> None:
        """What cannot be done ends our part, with words."""
        try:
            what()
        except Exception as e:
            self._refuse(as_ours(e))

    def _to_load(self) -> dict[int, Tensor]:
        """What was restored here; else, at the first agent, all slots with the values that it has."""
        assert self._held is not None
        found, self._found = self._found, None
        if found is not None or self._rank:
            return found or {}
        made = {s.number: self._held.stock(s, self._parts.values(s)) for s in self._held.slots}
        return {number: state.packed(stock.state()) for number, stock in made.items()}


async def _receive(link: Link, peer: int, tag: int) -> Payload:
    return (await link.recv(peer, tag)).payload


async def _hear_values(link: Link, last: int, values: Tensor, told: Callable[[Payload], None]) -> None:
    """Answers; large values come to where they belong."""
    while True:
        coming = link.recv(last, VALUES, values)
        apart = False
        while not apart:
            payload = (await link.recv(last, ANSWER)).payload
            apart = len(payload) == 1 and int(payload[0][0]) == WHOLE
            if apart:
                await coming
            told(payload)


async def _hear(link: Link, peer: int, tag: int, told: Callable[[Payload], None]) -> None:
    while True:
        told((await link.recv(peer, tag)).payload)
