"""A simulated agent that trains on servers: the real :class:`stretto.pushing.Pushing`, on a wire in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from stretto.drifted import Drifted
from stretto.ledger import Ledger
from stretto.ledger.ranges import Ranges, without
from stretto.notices import Given, notices
from stretto.preparing import named
from stretto.pushed import Pushed
from stretto.pushing import WORDS, Pushing
from stretto.server.leases import Lease
from stretto.server.settlement import Spec
from stretto.server.space import Slot, plan_slots
from stretto.server.stock import Known, Terms
from stretto.server.value import Server
from stretto.session import Closing, Layout
from stretto.simulate.task import MOMENTUM, RATE, Part, samples
from stretto.simulate.trainer import BUCKETS, Trainer
from stretto.simulate.wired import ROOM, Coming


class Pushers(Trainer):
    """``late``: we came when others were training."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.late = self._process.uid not in self.uids
        self._model = nn.ParameterList(self.weights.clone().split(self._job.sizes))
        drifts = self._strategy.signal == "drift"
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=RATE, momentum=0.0 if drifts else MOMENTUM)
        self._pushed: Pushed | Drifted
        if drifts:
            self._pushed = Drifted([self._model], self._strategy, ROOM, most=1)
        else:
            self._pushed = Pushed([self._model], self._optimizer, ROOM, ROOM.allocate, most=1)
        history, exchange = self._record.history, self._strategy.exchange
        assert history is not None and isinstance(exchange, Server)
        self._history, self._server = history, exchange
        self._window: list[Lease] = []
        words = torch.zeros(WORDS, dtype=torch.uint8)
        self._pushing = Pushing(
            self._pushed, notices(ROOM), words, self, late=self.late, together=exchange.staleness == 0
        )
        self._ledger = Ledger.begin(self._job.samples, 0, shuffle=False)
        self.spec = Spec(str(self._strategy), self._pushed.extents, self._pushed.rule)

    @property
    def layouts(self) -> Sequence[Layout]:
        return [Layout(0)]

    def hold(self) -> None:
        """Servers hold what we have."""
        layouts = self._pushed.layouts(named([self._model]))
        values = [bucket.values for bucket in self._pushed.buckets]
        self._process.to_session("hold_slots", self.spec, layouts, values)
        for slot in plan_slots(self.spec.extents, self._server.slot):
            self._history.places[slot.number] = self._place(slot)

    def _place(self, slot: Slot) -> Tensor:
        """Of the slot's elements, where they are in the weights."""
        (mine,) = self._pushed.buckets[slot.bucket].parameters
        at = next(at for at, p in enumerate(self._model) if p is mine)
        begin = sum(self._job.sizes[:at])
        return torch.arange(begin + slot.start, begin + slot.stop)

    async def _train(self) -> None:
        self.hold()
        for p, weights in zip(self._model, self.weights.split(self._job.sizes), strict=True):
            p.data.copy_(weights)
        await self._pushing.begin()
        terms = msgspec.json.encode(Terms(self._ledger, self._job.batch_size, self._job.epochs))
        await self._pushing.deal(terms, self._job.batch_size)
        while not self.leaving:
            lease = await self._pushing.next()
            if lease is None:
                return
            await self._process.sleep(2 * self._pace * self._random.random())
            self._pushing.hand_out(lease.number, lease.share)
            self._find(lease)
            if self._strategy.signal == "drift":
                self._optimizer.step()
            await self._pushing.stepped()
            self._pushed.give_back()

    def _find(self, lease: Lease) -> None:
        """The gradient of what was leased. (Drifts are made of gradients that are weighted, as backward would.)"""
        self._window = [*(self._window if self._pushed.left else ()), lease]
        self._history.leases[self._process.uid, lease.number] = tuple(self._window)
        weights = torch.cat([p.flatten() for p in self._model])
        gradient = self._job.gradient(weights, samples(lease.ranges))
        for p, piece in zip(self._model, gradient.split(self._job.sizes), strict=True):
            p.grad = piece * lease.share if self._strategy.signal == "drift" else piece

    # The wire

    @property
    def size(self) -> int:
        return len(self.uids)

    @property
    def saves(self) -> bool:
        return True

    def wishes(self) -> tuple[bool, bool]:
        return False, self.held

    def agree(self, given: Sequence[Given], *, fence: bool) -> Awaitable[Closing]:
        (one,) = given
        order = self._order("mean", one.flat, group=BUCKETS, fence=fence)
        return Coming(lambda: self._closed(order))

    async def _closed(self, order: int) -> Closing:
        closing = await self._wait(order)
        assert closing is not None
        self._move(closing)
        return closing

    def push(self, weight: float, lease: int, hyper: Tensor, parts: Sequence[tuple[Tensor, ...]]) -> Awaitable[bool]:
        self._number += 1
        number = self._number
        self._process.to_session("push", number, weight, lease, hyper, parts)
        return Coming(lambda: self._came(number))

    def ask(self, what: str, x: Tensor, clock: int = 0) -> Awaitable[bool]:
        self._number += 1
        number = self._number
        self._process.to_session("ask", number, what, x, clock)
        return Coming(lambda: self._came(number))

    async def _came(self, number: int) -> bool:
        return await self._wait(number) is None

    def stood(self, closing: Closing, known: bytes, *, save: bool) -> None:
        after = msgspec.json.decode(known, type=Known).ledger
        assert after is not None
        self.weights.copy_(torch.cat([p.detach().flatten() for p in self._model]))
        parts = tuple(Part(0, epoch, ranges, 1.0) for epoch, ranges in _trained(self._ledger, after))
        self._ledger = after
        place = self._record.commit(self.place, parts, (), self.weights, torch.zeros(0))
        self._applied(closing, place)

    # What others are given

    def _shared(self) -> dict[str, Any]:
        weights = torch.cat([p.detach().flatten() for p in self._model])
        return {"weights": weights, "outers": self._pushing.state(), "ledger": msgspec.to_builtins(self._ledger)}

    def _adopt(self, tree: dict[str, Any]) -> None:
        self._pushing.adopt(tree["outers"])
        self._ledger = msgspec.convert(tree["ledger"], Ledger)


def _trained(before: Ledger, after: Ledger) -> list[tuple[int, Ranges]]:
    """By epoch, what the one has left and the other has not."""
    found = []
    whole = ((0, before.samples or 0),)
    for epoch in range(before.epoch, after.epoch + 1 + len(after.ahead)):
        left = [(before.left, *before.ahead), (after.left, *after.ahead)]
        had, has = (
            x[epoch - ledger.epoch] if 0 <= epoch - ledger.epoch < len(x) else (() if epoch < ledger.epoch else whole)
            for x, ledger in zip(left, (before, after), strict=True)
        )
        done = without(had, has)
        if done:
            found.append((epoch, done))
    return found
