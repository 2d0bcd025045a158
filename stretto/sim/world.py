"""A world of agents in one thread: a virtual clock, a virtual network, and deaths by script.

The world steps one coroutine at a time, always the one whose moment is earliest, and of equal moments the one that was
scheduled first: the same seed gives the same run, to the bit and to the nanosecond of virtual time.

    >>> async def hello(link):
    ...     link.post(1 - link.rank, (torch.full((3,), float(link.rank)),))
    ...     return (await link.recv(1 - link.rank)).payload[0].tolist()
    >>> World(2).run(hello)
    [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
"""

from __future__ import annotations

import gc
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from stretto.core import ANY
from stretto.errors import PeerLost, StrettoError, UsageError
from stretto.sim.link import NativeSimLink, SimLink
from stretto.sim.network import SimNetwork
from stretto.sim.port import Lane, Port
from stretto.sim.waits import NEVER, Receive, Together

YOUNG = 10_000_000
"""Objects made between two garbage collections while a world runs: it holds millions of them, and few in cycles."""


class Moment(Protocol):
    """Something that happens at a time."""

    def fire(self) -> None: ...


class Task:
    """A coroutine of one agent."""

    __slots__ = ("coroutine", "inner", "over", "parent", "place", "port", "send")

    def __init__(
        self, port: Port, coroutine: Coroutine[Any, Any, Any], parent: Together | None = None, place: int = 0
    ) -> None:
        self.port = port
        self.coroutine = coroutine
        self.send = coroutine.send
        self.parent = parent
        self.place = place
        self.inner: Together | None = None
        self.over = False

    def close(self) -> None:
        if not self.over:
            self.over = True
            if self.inner is not None:
                self.inner.close()
            self.coroutine.close()


@dataclass(frozen=True, slots=True)
class _Death:
    world: World
    rank: int

    def fire(self) -> None:
        self.world.die(self.rank)


@dataclass(frozen=True, slots=True)
class _Notice:
    """The moment at which the others learn that an agent is gone."""

    world: World
    rank: int
    why: Exception

    def fire(self) -> None:
        self.world.notice(self.rank, self.why)


class World:
    """``size`` agents on ``network``.

    Args:
        seed: decides jitter and loss, and nothing else.
        hosts: which machine each agent is on; by default each has its own. (The network does not know machines.)
        native: whether links have an all-reduce of their own.
        detection: seconds from a death to when the others learn of it.
    """

    def __init__(
        self,
        size: int,
        network: SimNetwork | None = None,
        *,
        seed: int = 0,
        hosts: tuple[int, ...] | None = None,
        native: bool = False,
        detection: float = 0.1,
    ) -> None:
        if size < 1 or (hosts is not None and len(hosts) != size):
            raise UsageError(f"a world of {size} agents on hosts {hosts}: at least one agent, and a host for each")
        self.spec = network or SimNetwork()
        self.size = size
        self.seed = seed
        self.hosts = hosts or tuple(range(size))
        self.network = self.spec.agreed()
        self.now = 0.0
        self.lost: dict[int, Exception] = {}
        self.ready: deque[Task] = deque()
        self.sequence = itertools.count()
        self._native = native
        self._detection = detection
        self._heap: list[tuple[float, int, Moment]] = []
        self._deaths: list[tuple[float, int]] = []
        self._running = 0
        self._results: list[Any] = []
        self._rounds: dict[int, list[tuple[int, Tensor, Receive]]] = {}
        self._joined = [0] * size
        self._ports = [
            Port(self, r, 1 / self.spec.up.get(r, self.spec.rate), 1 / self.spec.down.get(r, self.spec.rate))
            for r in range(size)
        ]

    # What a test or a study asks

    def kill(self, rank: int, *, at: float | None = None, after_messages: int | None = None) -> None:
        """End an agent at a time (s), or as soon as it has begun to send so many messages.

        What it began to send arrives; what it had only posted does not.
        """
        if (at is None) == (after_messages is None):
            raise UsageError(f"kill({rank}): say either at= or after_messages=")
        if at is not None:
            self._deaths.append((at, rank))
        elif after_messages == 0:
            self._deaths.append((self.now, rank))
        else:
            self._ports[rank].limit = after_messages

    def run(self, make: Callable[[Any], Coroutine[Any, Any, Any]], *, keep_errors: bool = False) -> list[Any]:
        """One coroutine ``make(link)`` per living agent, to their ends; results by rank, None for the dead.

        May be called again: the clock goes on, the dead stay dead, what was not received is forgotten.

        Raises:
            StrettoError: agents wait for each other and nothing is under way.
            Exception: the first error, by rank, that is no consequence of another's; with ``keep_errors`` errors
                are among the results instead.
        """
        thresholds = gc.get_threshold()
        gc.set_threshold(YOUNG, *thresholds[1:])
        try:
            self._begin(make)
            with torch.no_grad():
                self._loop()
        finally:
            gc.set_threshold(*thresholds)
            for port in self._ports:
                if port.main is not None:
                    port.main.close()
        failed = [r for r in self._results if isinstance(r, Exception)]
        if failed and not keep_errors:
            raise min(failed, key=lambda error: isinstance(error, PeerLost))
        return self._results

    @property
    def messages(self) -> list[int]:
        """Messages that each agent has begun to send."""
        return [port.sent for port in self._ports]

    @property
    def bytes(self) -> list[int]:
        """Payload bytes that each agent has begun to send."""
        return [sum(lane.bytes for lane in port.lanes.values()) for port in self._ports]

    def traffic(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(messages, bytes) of every (src, dst) that was used."""
        return {(p.rank, dst): (lane.messages, lane.bytes) for p in self._ports for dst, lane in p.lanes.items()}

    # What links and waits ask

    def at(self, moment: float, what: Moment) -> None:
        heapq.heappush(self._heap, (moment, next(self.sequence), what))

    def connect(self, port: Port, dst: int) -> Lane:
        lane = port.lanes[dst] = Lane(self, port, self._ports[dst], self.spec.wire(port.rank, dst))
        return lane

    def start(
        self, port: Port, coroutine: Coroutine[Any, Any, Any], parent: Together | None = None, place: int = 0
    ) -> Task:
        task = Task(port, coroutine, parent, place)
        self.ready.append(task)
        return task

    def step(self, task: Task) -> None:
        if task.over or task.port.gone:
            return
        try:
            wait = task.send(None)
        except StopIteration as stop:
            self._end(task, stop.value, None)
        except Exception as error:
            self._end(task, None, error)
        else:
            wait.park(task)

    def die(self, rank: int) -> None:
        if not self._ports[rank].gone:
            self._leave(rank, PeerLost(f"agent {rank} died at {self.now:.6f} s", rank), self._detection)
            main = self._ports[rank].main
            if main is not None and not main.over:
                self._running -= 1

    def notice(self, rank: int, why: Exception) -> None:
        self.lost[rank] = why
        port = self._ports[rank]
        for lane, _, target in port.queue:
            target.lose(self.loss(lane.inlet.rank, rank, None))
        port.queue.clear()
        for other in self._ports:
            if not other.gone:
                other.forget(rank)
        for waiting in self._rounds.values():
            for member, _, receive in waiting:
                receive.lose(self.loss(member, rank, None))

    def loss(self, rank: int, src: int, tag: int | None) -> PeerLost:
        """What ``rank`` is told that waited for ``src``; ``peer`` is the agent whose loss began it."""
        why = self.lost[src] if src != ANY else next(reversed(self.lost.values()))
        where = "" if tag is None else f" (tag {tag})"
        peer = why.peer if isinstance(why, PeerLost) else src
        return PeerLost(f"agent {rank} waited for {_whom(src)}{where} at {self.now:.6f} s, but {why}", peer)

    def gather(self, rank: int, x: Tensor, scale: float) -> Receive:
        """The native all-reduce: each agent's k-th call is of the same round."""
        receive = Receive(self, rank, 0, None)
        self._joined[rank] += 1
        turn = self._joined[rank]
        members = self._rounds.setdefault(turn, [])
        members.append((rank, x, receive))
        if self.lost:
            receive.lose(self.loss(rank, next(iter(self.lost)), None))
        elif len(members) == self.size:
            del self._rounds[turn]
            self._reduce(sorted(members, key=lambda member: member[0]), scale)
        return receive

    # How it goes on

    def _begin(self, make: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        link = NativeSimLink if self._native else SimLink
        self._heap.clear()
        self.ready.clear()
        self._rounds.clear()
        self._joined = [0] * self.size
        self._results = [None] * self.size
        for port in self._ports:
            port.clear()
        for at, rank in sorted(self._deaths):
            if at <= self.now:
                self.die(rank)
            else:
                self.at(at, _Death(self, rank))
        living = [port for port in self._ports if not port.gone]
        self._running = len(living)
        for port in living:
            port.main = self.start(port, make(link(self, port)))

    def _loop(self) -> None:
        heap, ready, step, pop = self._heap, self.ready, self.step, heapq.heappop
        while self._running:
            while ready:
                step(ready.popleft())
            if not self._running:
                return
            if not heap:
                raise StrettoError(self._deadlock())
            self.now, _, what = pop(heap)
            what.fire()

    def _end(self, task: Task, result: Any, error: Exception | None) -> None:
        task.over = True
        if task.parent is not None:
            task.parent.ended(task.place, result, error)
            return
        rank = task.port.rank
        self._running -= 1
        self._results[rank] = result if error is None else error
        if error is not None:
            peer = error.peer if isinstance(error, PeerLost) else rank
            self._leave(rank, PeerLost(f"agent {rank} gave up: {error}", peer), self.network.delay)

    def _leave(self, rank: int, why: Exception, after: float) -> None:
        self._ports[rank].gone = True
        self.at(self.now + after, _Notice(self, rank, why))

    def _reduce(self, members: list[tuple[int, Tensor, Receive]], scale: float) -> None:
        xs = [x for _, x, _ in members]
        total = xs[0].clone()
        for x in xs[1:]:
            total.add_(x)
        total.mul_(scale)
        for x in xs:
            x.copy_(total)
        share = 2 * (self.size - 1) / self.size
        done = self.now + 2 * self.network.delay + share * total.nbytes / self.network.rate
        for _, _, receive in members:
            receive.arrives(done)

    def _deadlock(self) -> str:
        waits = [
            f"agent {port.rank} waits for {_whom(receive.src)} (tag {receive.tag})"
            for port in self._ports
            if not port.gone
            for receive in [*port.expected.values(), *(r for box in port.boxes.values() for r in box.receives)]
            if receive.task is not None and receive.arrival == NEVER
        ]
        waits += [f"agent {r} waits in all_reduce" for m in self._rounds.values() for r, _, _ in m]
        more = f", and {len(waits) - 8} more" if len(waits) > 8 else ""
        return f"nothing is under way at {self.now:.6f} s, and {'; '.join(waits[:8])}{more}: post what they wait for"


def _whom(src: int) -> str:
    return "anyone" if src == ANY else f"agent {src}"
