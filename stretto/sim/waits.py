"""What a simulated agent can wait for: messages, sleep, its own sends, its children.

What a coroutine awaits yields itself to the world: ``park(task)`` keeps the task until ``fire`` steps it.
The time at which a message arrives is known when it leaves, so a receive costs one entry in the world's heap, or none
when the receiver comes late.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stretto.core import Message, Payload
from stretto.errors import ProtocolError

if TYPE_CHECKING:
    from stretto.sim.port import Port
    from stretto.sim.world import Task, World

NEVER = float("inf")


class Letter:
    """A message that nobody waits for yet. ``arrival`` is NEVER until it leaves its sender."""

    __slots__ = ("arrival", "box", "claim", "lost", "payload", "src")

    def __init__(self, src: int, payload: Payload) -> None:
        self.src = src
        self.payload = payload
        self.arrival = NEVER
        self.claim: Receive | None = None
        self.box: Box | None = None
        self.lost: Exception | None = None

    def arrives(self, at: float) -> None:
        self.arrival = at
        if self.claim is not None:
            self.claim.arrives(at)
        elif self.box is not None:
            self.box.departed(self)

    def lose(self, error: Exception) -> None:
        self.lost = error
        if self.claim is not None:
            self.claim.lose(error)

    def give(self, receive: Receive) -> None:
        """To a receive that comes after the message was posted."""
        receive.take(self.payload)
        self.claim = receive
        if self.lost is not None:
            receive.lose(self.lost)
        elif self.arrival < NEVER:
            receive.arrives(self.arrival)


class Box:
    """The messages of one tag at an agent that receives them from whoever sends first."""

    __slots__ = ("arriving", "late", "receives", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self.arriving: list[tuple[float, int, Letter]] = []
        self.late: dict[Letter, None] = {}
        self.receives: deque[Receive] = deque()

    def add(self, letter: Letter) -> None:
        letter.box = self
        self.late[letter] = None
        if letter.arrival < NEVER:
            self.departed(letter)

    def departed(self, letter: Letter) -> None:
        del self.late[letter]
        heapq.heappush(self.arriving, (letter.arrival, next(self.world.sequence), letter))
        if self.receives:
            self.world.at(letter.arrival, self)

    def expect(self, receive: Receive) -> None:
        self.receives.append(receive)
        self.fire()

    def expect_from(self, receive: Receive) -> bool:
        """Whether a message from ``receive.src`` was here or under way, and is now its."""
        for entry in sorted(self.arriving):
            if entry[2].src == receive.src:
                self.arriving.remove(entry)
                heapq.heapify(self.arriving)
                entry[2].give(receive)
                return True
        for letter in self.late:
            if letter.src == receive.src:
                del self.late[letter]
                letter.give(receive)
                return True
        return False

    def fire(self) -> None:
        while self.receives and self.arriving:
            at = self.arriving[0][0]
            if at > self.world.now:
                self.world.at(at, self)
                return
            letter = heapq.heappop(self.arriving)[2]
            receive = self.receives.popleft()
            receive.src = letter.src
            letter.give(receive)


class Receive:
    """A posted receive; awaitable now or later, once."""

    __slots__ = ("arrival", "error", "into", "payload", "src", "tag", "task", "then", "world")

    def __init__(self, world: World, src: int, tag: int, into: Tensor | None) -> None:
        self.world = world
        self.src = src
        self.tag = tag
        self.into = into
        self.arrival = NEVER
        self.payload: Payload = ()
        self.task: Task | None = None
        self.error: Exception | None = None
        self.then: Receive | None = None

    def __await__(self) -> Generator[Any, None, Message]:
        if self.arrival > self.world.now and self.error is None:
            yield self
        if self.error is not None:
            raise self.error
        return Message(self.src, self.payload)

    def park(self, task: Task) -> None:
        self.task = task
        if self.arrival < NEVER:
            self.world.at(self.arrival, self)

    def arrives(self, at: float) -> None:
        self.arrival = at
        if self.task is not None:
            self.world.at(at, self)

    def lose(self, error: Exception) -> None:
        if self.error is None and self.arrival == NEVER:
            self.error = error
            if self.task is not None:
                self.world.at(self.world.now, self)

    def fire(self) -> None:
        if self.task is not None:
            self.world.step(self.task)

    def take(self, payload: Payload) -> None:
        """Keep what was sent: copied into the tensor that waits, or as it is (the caller has made a snapshot)."""
        into = self.into
        if into is None:
            self.payload = payload
            return
        if len(payload) != 1 or payload[0].nbytes != into.nbytes or payload[0].dtype != into.dtype:
            posted = ", ".join(f"{t.numel()} x {t.dtype}" for t in payload)
            self.error = ProtocolError(
                f"agent {self.src} sent {posted} with tag {self.tag}, but the receive waits for "
                f"{into.numel()} x {into.dtype}; both must post the same"
            )
            return
        sent = payload[0]
        if not sent.is_meta:
            into.copy_(sent if sent.dim() == 1 else sent.view(-1))
        self.payload = (into,)


class Sleep:
    __slots__ = ("seconds", "task", "world")

    def __init__(self, world: World, seconds: float) -> None:
        self.world = world
        self.seconds = seconds
        self.task: Task | None = None

    def __await__(self) -> Generator[Any, None, None]:
        yield self

    def park(self, task: Task) -> None:
        self.task = task
        self.world.at(self.world.now + max(0.0, self.seconds), self)

    def fire(self) -> None:
        assert self.task is not None
        self.world.step(self.task)


class Drain:
    """Waits until its port has nothing left to send."""

    __slots__ = ("port", "task", "world")

    def __init__(self, world: World, port: Port) -> None:
        self.world = world
        self.port = port
        self.task: Task | None = None

    def __await__(self) -> Generator[Any, None, None]:
        while self.port.queue or self.port.free > self.world.now:
            yield self

    def park(self, task: Task) -> None:
        self.task = task
        if self.port.queue:
            self.port.drains.append(self)
        else:
            self.world.at(self.port.free, self)

    def fire(self) -> None:
        assert self.task is not None
        self.world.step(self.task)


class Together:
    """Children side by side; the first error closes the others."""

    __slots__ = ("children", "coroutines", "error", "left", "port", "results", "task", "world")

    def __init__(self, world: World, port: Port, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> None:
        self.world = world
        self.port = port
        self.coroutines = coroutines
        self.results: list[Any] = [None] * len(coroutines)
        self.left = len(coroutines)
        self.error: Exception | None = None
        self.children: list[Task] = []
        self.task: Task | None = None

    def __await__(self) -> Generator[Any, None, list[Any]]:
        if self.left:
            yield self
        if self.error is not None:
            raise self.error
        return self.results

    def park(self, task: Task) -> None:
        self.task = task
        task.inner = self
        self.children = [
            self.world.start(self.port, coroutine, self, place) for place, coroutine in enumerate(self.coroutines)
        ]

    def ended(self, place: int, result: Any, error: Exception | None) -> None:
        assert self.task is not None
        if error is not None:
            self.error = error
            self.close()
        else:
            self.results[place] = result
            self.left -= 1
        if error is not None or not self.left:
            self.task.inner = None
            self.world.ready.append(self.task)

    def close(self) -> None:
        for child in self.children:
            child.close()
