"""Time, and what is between the processes of a world: connections that lose, delay and repeat, and fall silent."""

from __future__ import annotations

import heapq
import random
from abc import ABC, abstractmethod
from collections.abc import Callable

from toys import Node, Wire, first_word

from stretto.membership.messages import Message

SILENCE = 2.0


class Wires(ABC):
    """The part of a world that knows no more of its processes than whether they live."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = random.Random(seed)
        self.size = size
        self.now = 0.0
        self.nodes: dict[int, Node] = {}
        self.wires: dict[frozenset[int], Wire] = {}
        self.groups: dict[int, int] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    @abstractmethod
    def event(self, node: Node, kind: str, *what: object) -> None: ...

    @abstractmethod
    def hear(self, node: Node, uid: int, message: Message) -> None: ...

    # Time.

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now + seconds, self._order, call))

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> bool:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, call = heapq.heappop(self._queue)
            call()
            if stop():
                return True
        self.now = max(self.now, until)
        return stop()

    def on(self, node: Node, call: Callable[[], None], seconds: float = 0.0) -> None:
        """Happens at ``node``, when it is not stopped, unless it is dead."""

        def happen() -> None:
            if not node.alive:
                return
            if self.now < node.stopped_until:
                self.after(node.stopped_until - self.now, happen)
            else:
                call()

        self.after(seconds, happen)

    def delay(self) -> float:
        return self.random.choice((0.001, 0.01, 0.05)) * (1 + self.random.random())

    # Connections.

    def linked(self, a: int, b: int) -> bool:
        wire = self.wires.get(frozenset((a, b)))
        return wire is not None and wire.up

    def wired(self, node: Node) -> bool:
        return any(node.uid in pair and wire.up for pair, wire in self.wires.items())

    def together(self, a: int, b: int) -> bool:
        return self.groups.get(a, 0) == self.groups.get(b, 0)

    def connect(self, node: Node, uid: int) -> None:
        """Dial; a new connection takes the place of one that there is."""

        def arrive() -> None:
            other = self.nodes[uid]
            reached = other.alive and other.views is not None and self.together(node.uid, uid)
            if not reached or not node.alive or self.now < other.stopped_until:
                late = 0.0 if self.together(node.uid, uid) and not other.alive else SILENCE
                self.on(node, lambda: self.event_lost(node, uid, "refused"), late)
                return
            wire = Wire((node.uid, uid))
            self.wires[frozenset((node.uid, uid))] = wire
            hello = node.views.greeting if node.views is not None else first_word(node, self.size)
            self.post(wire, node.uid, lambda: self.event(other, "hello", hello))
            if node.views is not None:
                self.event(node, "met", uid)

        self.on(node, arrive, self.delay())

    def event_lost(self, node: Node, uid: int, why: str) -> None:
        wire = self.wires.get(frozenset((node.uid, uid)))
        if wire is None or not wire.up:
            self.event(node, "lost", uid, why)

    def post(self, wire: Wire, src: int, call: Callable[[], None]) -> None:
        """In order, when it can get through; lost when the connection is."""
        dst = wire.ends[0] if wire.ends[1] == src else wire.ends[1]
        wire.at[src] = max(wire.at.get(src, 0.0), self.now) + self.delay()
        other = self.nodes[dst]

        def arrive() -> None:
            if not wire.up or not self.current(wire):
                return
            if not self.together(*wire.ends):
                # at the same instant for all that wait: in order
                self.on(other, arrive, (int(10 * self.now + 1e-6) + 1) / 10 - self.now)
            else:
                call()

        self.on(other, arrive, wire.at[src] - self.now)

    def current(self, wire: Wire) -> bool:
        return self.wires.get(frozenset(wire.ends)) is wire

    def send(self, node: Node, uid: int, message: Message) -> None:
        wire = self.wires.get(frozenset((node.uid, uid)))
        if wire is not None and wire.up:
            other = self.nodes[uid]
            self.post(wire, node.uid, lambda: self.hear(other, node.uid, message))
            if self.random.random() < 0.02:
                self.post(wire, node.uid, lambda: self.hear(other, node.uid, message))

    def hang_up(self, node: Node, uid: int) -> None:
        pair = frozenset((node.uid, uid))
        wire = self.wires.get(pair)
        if wire is not None and wire.up:
            other = self.nodes[uid]
            self.post(wire, node.uid, lambda: (self.wires.pop(pair), self.event(other, "lost", node.uid, "closed")))  # type: ignore[func-returns-value]

    def snap(self, pair: frozenset[int], seconds: float = 0.0) -> None:
        """The connection ends without a word: each end notices by itself."""
        wire = self.wires.get(pair)
        if wire is None or not wire.up:
            return
        wire.up = False
        del self.wires[pair]
        for uid, other in (wire.ends, wire.ends[::-1]):
            node = self.nodes[uid]
            self.on(node, lambda node=node, other=other: self.noticed(node, other), seconds + self.delay())

    def noticed(self, node: Node, other: int) -> None:
        if frozenset((node.uid, other)) not in self.wires:
            self.event(node, "lost", other, "closed")

    def cut(self, uids: set[int], seconds: float) -> None:
        group = self._order
        for uid in uids:
            self.groups[uid] = group
        for pair in list(self.wires):
            if len(pair & uids) == 1 and seconds > SILENCE:
                self.after(SILENCE * (1 + self.random.random() / 4), lambda pair=pair: self.silent(pair))
        self.after(seconds, lambda: [self.groups.pop(uid, None) for uid in uids if self.groups.get(uid) == group])  # type: ignore[func-returns-value]

    def silent(self, pair: frozenset[int]) -> None:
        if not self.together(*pair):
            self.snap(pair, self.random.random() / 2)
