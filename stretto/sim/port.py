"""The simulated network at work: an agent's port, and the lanes from it to others.

A lane is where time is made, by the model of :mod:`stretto.sim.network`; a port holds what waits to leave and what
came.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING

from torch import Tensor

from stretto.core import ANY, Payload
from stretto.sim.network import Wire
from stretto.sim.waits import Box, Drain, Letter, Receive

if TYPE_CHECKING:
    from stretto.sim.world import Task, World


class Port:
    """One agent's place in the network. ``up`` and ``down`` are seconds per byte."""

    __slots__ = (
        "boxes", "down", "drains", "expected", "free", "full", "gone", "lanes",
        "limit", "mail", "main", "queue", "rank", "sent", "up", "world",
    )  # fmt: skip

    def __init__(self, world: World, rank: int, up: float, down: float) -> None:
        self.world = world
        self.rank = rank
        self.up = up
        self.down = down
        self.free = 0.0
        self.full = 0.0
        self.sent = 0
        self.limit: int | None = None
        self.gone = False
        self.main: Task | None = None
        self.lanes: dict[int, Lane] = {}
        self.clear()

    def clear(self) -> None:
        """Forget what was not received."""
        self.queue: deque[tuple[Lane, int, Letter | Receive]] = deque()
        self.drains: list[Drain] = []
        self.expected: dict[int, Receive] = {}
        self.mail: dict[int, deque[Letter]] = {}
        self.boxes: dict[int, Box] = {}

    def expect(self, receive: Receive) -> None:
        if receive.src == ANY:
            self._expect_any(receive)
            return
        key = receive.tag * self.world.size + receive.src
        letters = self.mail.get(key)
        if letters is not None:
            letter = letters.popleft()
            if not letters:
                del self.mail[key]
            letter.give(receive)
            return
        if receive.tag in self.boxes and self.boxes[receive.tag].expect_from(receive):
            return
        last = self.expected.setdefault(key, receive)
        if last is not receive:
            while last.then is not None:
                last = last.then
            last.then = receive
        if receive.src in self.world.lost:
            self.forget(receive.src)

    def _expect_any(self, receive: Receive) -> None:
        box = self.boxes.get(receive.tag)
        if box is None:
            box = self.boxes[receive.tag] = Box(self.world)
            for key in [key for key in self.mail if key // self.world.size == receive.tag]:
                for letter in self.mail.pop(key):
                    box.add(letter)
        box.expect(receive)
        if len(self.world.lost) >= self.world.size - 1:
            self.forget(ANY)

    def forget(self, src: int) -> None:
        """Receives from ``src``, which is gone, and those from anyone when all are, raise PeerLost."""
        size = self.world.size
        for key in [key for key in self.expected if key % size == src]:
            receive: Receive | None = self.expected.pop(key)
            while receive is not None:
                receive.lose(self.world.loss(self.rank, src, receive.tag))
                receive = receive.then
        if len(self.world.lost.keys() - {self.rank}) >= size - 1:
            for box in self.boxes.values():
                waiting = () if box.arriving or box.late else tuple(box.receives)
                for receive in waiting:
                    box.receives.remove(receive)
                    receive.lose(self.world.loss(self.rank, ANY, receive.tag))

    def fire(self) -> None:
        """The wire is free: the next message leaves."""
        if self.gone:
            return
        lane, nbytes, target = self.queue.popleft()
        lane.depart(nbytes, target)
        if self.queue:
            self.world.at(self.free, self)
            return
        for drain in self.drains:
            self.world.at(self.free, drain)
        self.drains.clear()


class Lane:
    """What goes from one agent to one other."""

    __slots__ = (
        "bytes", "clear", "delay", "draw", "inlet", "last", "messages", "per_byte", "source", "src", "wire", "world"
    )  # fmt: skip

    def __init__(self, world: World, source: Port, inlet: Port, wire: Wire) -> None:
        self.world = world
        self.source = source
        self.src = source.rank
        self.inlet = inlet
        self.wire = wire
        self.delay = wire.delay
        self.per_byte = 1 / wire.rate
        self.draw = random.Random(f"{world.seed} {source.rank} {inlet.rank}") if wire.jitter or wire.loss else None
        self.clear = 0.0
        self.last = 0.0
        self.messages = 0
        self.bytes = 0

    def carry(self, payload: Payload, tag: int) -> None:
        source, inlet, world = self.source, self.inlet, self.world
        if source.gone:
            return
        nbytes = 0
        for tensor in payload:
            nbytes += tensor.nbytes
        key = tag * world.size + self.src
        target: Receive | Letter
        receive = inlet.expected.pop(key, None)
        if receive is not None:
            if receive.then is not None:
                inlet.expected[key] = receive.then
            receive.take(payload if receive.into is not None else snapshot(payload))
            target = receive
        else:
            target = self._leave(Letter(self.src, snapshot(payload)), key, tag)
        if source.free > world.now or source.queue:
            source.queue.append((self, nbytes, target))
            if len(source.queue) == 1:
                world.at(source.free, source)
        else:
            self.depart(nbytes, target)

    def _leave(self, letter: Letter, key: int, tag: int) -> Letter:
        """With a receiver that does not wait for it by name."""
        box = self.inlet.boxes.get(tag)
        if box is not None:
            box.add(letter)
        else:
            self.inlet.mail.setdefault(key, deque()).append(letter)
        return letter

    def depart(self, nbytes: int, target: Letter | Receive) -> None:
        """The message begins to leave now; from here on its arrival is certain."""
        source, inlet, now = self.source, self.inlet, self.world.now
        source.free = arrival = now + nbytes * source.up
        inlet.full = full = (inlet.full if inlet.full > now else now) + nbytes * inlet.down
        arrival = full if full > arrival else arrival
        if self.per_byte:
            self.clear = clear = (self.clear if self.clear > now else now) + nbytes * self.per_byte
            arrival = clear if clear > arrival else arrival
        arrival += self.delay
        if self.draw is not None:
            arrival = self.last = max(self.last, arrival + self.wire.extra(nbytes, self.draw))
        self.messages += 1
        self.bytes += nbytes
        target.arrives(arrival)
        source.sent += 1
        if source.sent == source.limit:
            self.world.die(source.rank)


def snapshot(payload: Payload) -> tuple[Tensor, ...]:
    return tuple([tensor if tensor.is_meta else tensor.detach().clone() for tensor in payload])
