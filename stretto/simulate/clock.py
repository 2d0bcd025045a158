"""Virtual time for processes that stop and die: a heap of calls, each at one of them, and the coroutines they wake."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from stretto.links.loop import Loop, Task, Together, Waiter


class Process(Protocol):
    """Whoever calls are made at: nothing happens at the dead, and at the stopped only when they go on."""

    alive: bool
    stopped_until: float


class Clock:
    """Calls in the order of their times; those of one time in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.halted = False
        self.ready: deque[Task] = deque()
        self._calls: list[tuple[float, int, Process | None, Callable[[], object]]] = []
        self._order = 0

    def at(self, time: float, process: Process | None, call: Callable[[], object]) -> None:
        self._order += 1
        heapq.heappush(self._calls, (time, self._order, process, call))

    def after(self, seconds: float, process: Process | None, call: Callable[[], object]) -> None:
        self._order += 1
        heapq.heappush(self._calls, (self.now + seconds, self._order, process, call))

    def run(self, until: float) -> None:
        """Everything up to a time, or until somebody sets :attr:`halted`."""
        calls, ready, pop = self._calls, self.ready, heapq.heappop
        while calls and calls[0][0] <= until and not self.halted:
            time, order, process, call = pop(calls)
            self.now = time
            if process is not None:
                if not process.alive:
                    continue
                if process.stopped_until > time:
                    heapq.heappush(calls, (process.stopped_until, order, process, call))
                    continue
            call()
            while ready:
                ready.popleft().step()
        if not self.halted:
            self.now = max(self.now, until)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        task = _Timed(self, coroutine)
        self.ready.append(task)
        return task

    def together(self, coroutines: tuple[Coroutine[Any, Any, Any], ...]) -> Waiter:
        return Together([self.spawn(c) for c in coroutines])

    def sleep(self, seconds: float, process: Process) -> Waiter:
        waiter = Waiter()
        self.after(seconds, process, waiter.complete)
        return waiter


class _Timed(Task):
    """A task of the real loop's kind; all that it needs of its loop is ``ready``."""

    __slots__ = ()

    def __init__(self, clock: Clock, coroutine: Coroutine[Any, Any, Any]) -> None:
        loop: Loop = clock  # type: ignore[assignment]
        super().__init__(loop, coroutine)
