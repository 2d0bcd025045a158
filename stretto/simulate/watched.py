"""Slots and those who ask for them, as they are, but the history of the run is told what they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stretto.core import Cell, Codec, Payload
from stretto.server.client import Client, Memory
from stretto.server.messages import COPIED, LOAD, PAUSE, PUSH, Request
from stretto.server.space import Slot
from stretto.server.stock import Reply, Stock
from stretto.server.value import Server
from stretto.session.held import Makers
from stretto.simulate.history import History
from stretto.simulate.promises import Broken


def watching(history: History | None) -> Makers:
    """What a session is made of."""
    if history is None:
        return Makers()
    return Makers(partial(WatchedStock, history), partial(WatchedClient, history))


class WatchedStock(Stock):
    """``at``: what it holds. What is given to another holder says so, too."""

    def __init__(self, history: History, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._history = history
        self._at = history.begun(self.slot.number, self.version, self.shard.values)
        self._arrived: dict[int, tuple[int, int]] = {}
        self._idle: set[int] = set()

    def enter(self, members: tuple[int, ...], clock: int | None) -> None:
        new = set(members) - self.shard.clocks.keys()
        super().enter(members, clock)
        self._arrived = {uid: x for uid, x in self._arrived.items() if uid in members and clock is None}
        self._idle = (self._idle & set(members)) | (new if self._history.server.staleness != 0 else set())
        self._note()

    def apply(self, request: Request, body: Payload) -> list[Reply]:
        clock, version = self.shard.clocks.get(request.uid), self.version
        replies = super().apply(request, body)
        if request.kind == LOAD:
            self._at = self._history.begun(self.slot.number, self.version, self.shard.values)
            self._idle = set(self.shard.members) if self._history.server.staleness != 0 else set()
        elif request.kind == PUSH and (self.shard.clocks[request.uid], self.version) != (clock, version):
            self._arrived[request.uid] = request.clock, version - request.have
            self._idle.discard(request.uid)
        elif request.kind == PAUSE:
            (self._idle.discard if request.weight else self._idle.add)(request.uid)
        self._note()
        active = {uid: clock for uid, clock in self.shard.clocks.items() if uid not in self._idle}
        for reply in replies:
            if reply.request.kind == PUSH and reply.about is None:
                self._history.answered(self._at, (reply.uid, reply.request.clock), active)
        return replies

    def state(self) -> dict[str, Any]:
        return super().state() | {"at": id(self._at), "arrived": dict(self._arrived), "idle": sorted(self._idle)}

    def load(self, found: dict[str, Any]) -> None:
        super().load(found)
        self._at = next(state for state in self._history.states.values() if id(state) == found["at"])
        self._arrived = {uid: tuple(x) for uid, x in found["arrived"].items()}
        self._idle = set(found["idle"])
        if not torch.equal(self._at.values, self.shard.values):
            raise Broken(f"slot {self.slot.number} was given away with other values than its holder had")

    def _note(self) -> None:
        """Something was carried out, or undone."""
        if self.version == self._at.version - 1 and self._at.before is not None:
            self._at = self._at.before
        elif self.version == self._at.version + 1:
            members = self.shard.members
            came = [uid for uid in members if uid in self._arrived]
            pushes = tuple((uid, self._arrived[uid][0]) for uid in came)
            tau = self._arrived[came[0]][1]
            self._at = self._history.stepped(self._at, pushes, len(members), tau, self.shard.values)
            self._arrived.clear()
        if self.version != self._at.version or not torch.equal(self._at.values, self.shard.values):
            raise Broken(f"slot {self.slot.number} is at version {self.version}, and was at {self._at.version}")


class WatchedClient(Client):
    """What it reads, and that an order of its trainer's is carried out, is told before the trainer is."""

    def __init__(
        self,
        history: History,
        me: int,
        slots: Sequence[Slot],
        server: Server,
        codec: Codec,
        cells: Sequence[Cell],
        memory: Memory,
        ended: Callable[[int, Tensor | None], None],
        lend: Callable[[Tensor], Tensor | None],
    ) -> None:
        super().__init__(me, slots, server, codec, cells, memory, self._went_on, lend)
        self._history, self._uid, self._told = history, me, ended
        self._orders: dict[int, tuple[int, int] | None] = {}
        self._reads: tuple[int, int] | None = None

    def push(self, number: int, weight: float, lease: int, hyper: Tensor) -> None:
        self._orders[number] = self._uid, self._clock + 1
        self._history.pushes(self._uid, self._clock + 1, lease, weight)
        super().push(number, weight, lease, hyper)

    def pull(self, number: int) -> None:
        self._orders[number] = None
        super().pull(number)

    def answered(self, slot: int, payload: Payload) -> None:
        kind, version = (int(x) for x in payload[0][:2].tolist())
        self._reads = (slot, version) if kind != COPIED else None
        super().answered(slot, payload)
        self._note()

    def _note(self) -> None:
        if self._reads is not None:
            (slot, version), self._reads = self._reads, None
            self._history.reading(self._uid, slot, version, self._memory.values(self._slots[slot]))

    def _went_on(self, number: int, about: Tensor | None) -> None:
        self._note()
        if number in self._orders:
            self._history.goes_on(self._uid, self._orders.pop(number))
        self._told(number, about)
