"""The driver of coroutines over real descriptors: one thread, one epoll, no asyncio.

Theory of operation. A coroutine yields the :class:`Waiter` it waits for; whoever completes the waiter puts the
coroutine back on the ready queue with the value or the error. A turn of the loop runs everything that is ready, lets
connections write what was posted meanwhile (so that small messages to one peer leave in one system call), then sleeps
in epoll until a descriptor or a timer is due.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any


class Waiter:
    """Something one coroutine can await, once."""

    __slots__ = ("_callback", "done", "error", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._callback: Callable[[Waiter], None] | None = None

    def __await__(self) -> Generator[Waiter, None, Any]:
        if not self.done:
            yield self
        if self.error is not None:
            raise self.error
        return self.value

    def complete(self, value: Any = None, error: BaseException | None = None) -> None:
        """Set the outcome; later calls change nothing."""
        if self.done:
            return
        self.done, self.value, self.error = True, value, error
        if self._callback is not None:
            self._callback(self)

    def then(self, callback: Callable[[Waiter], None]) -> None:
        """Call ``callback(self)`` when done, at once if it is."""
        if self.done:
            callback(self)
        else:
            self._callback = callback


class Task(Waiter):
    """A running coroutine; awaiting it gives what it returns."""

    __slots__ = ("_awaits", "_coroutine", "_loop")

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, Any]) -> None:
        super().__init__()
        self._loop, self._coroutine = loop, coroutine
        self._awaits: Waiter | None = None

    def resume(self, _: Waiter | None = None) -> None:
        self._loop.ready.append(self)

    def step(self) -> None:
        if self.done:
            return
        try:
            waiter = self._coroutine.send(None)
        except StopIteration as stop:
            self.complete(stop.value)
        except BaseException as e:
            self.complete(error=e)
        else:
            self._awaits = waiter
            waiter.then(self.resume)

    def cancel(self) -> None:
        """End it where it waits, and with it what it runs together."""
        if not self.done:
            self.done = True
            if isinstance(self._awaits, Together):
                self._awaits.cancel()
            self._coroutine.close()


class Together(Waiter):
    """Waits for all of some tasks: their results in order, or the first error, which ends the others."""

    __slots__ = ("_left", "_tasks")

    def __init__(self, tasks: list[Task]) -> None:
        super().__init__()
        self._tasks, self._left = tasks, len(tasks)
        if not tasks:
            self.complete([])
        for task in tasks:
            task.then(self._ended)

    def _ended(self, task: Waiter) -> None:
        self._left -= 1
        if task.error is not None and not self.done:
            self.cancel()
            self.complete(error=task.error)
        elif not self._left:
            self.complete([t.value for t in self._tasks])

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


class Loop:
    """Ready tasks, timers, and descriptors with what to call when they can be read or written."""

    def __init__(self) -> None:
        self.ready: deque[Task] = deque()
        self.dirty: set[Callable[[], None]] = set()
        self._epoll = select.epoll()
        self._on: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Waiter]] = []
        self._order = itertools.count()
        self._calls: deque[Callable[[], object]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._gate = threading.Lock()
        self._thread = threading.get_ident()
        self.watch(self._wake, select.EPOLLIN, self._woken)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        task = Task(self, coroutine)
        self.ready.append(task)
        return task

    def together(self, coroutines: tuple[Coroutine[Any, Any, Any], ...]) -> Waiter:
        """A waiter for all of ``coroutines``: their results in order, or the first error, which ends the others."""
        return Together([self.spawn(c) for c in coroutines])

    def sleep(self, seconds: float) -> Waiter:
        waiter = Waiter()
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), waiter))
        return waiter

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call ``call(events)`` when ``fd`` is ready; replaces what was watched on it."""
        if fd in self._on:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._on[fd] = call

    def forget(self, fd: int) -> None:
        if self._on.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call(self, function: Callable[[], object]) -> None:
        """Run ``function`` in the loop's thread; may be called from any thread. A loop that is closed runs nothing."""
        if threading.get_ident() == self._thread:
            self._calls.append(function)
            return
        with self._gate:  # what is called may end and close the loop, before it is woken
            if self._wake >= 0:
                self._calls.append(function)
                os.eventfd_write(self._wake, 1)

    def _woken(self, _: int) -> None:
        os.eventfd_read(self._wake)

    def turn(self) -> None:
        """Wait for the next event unless there is work already; run what is ready; write what was posted."""
        busy = self.ready or self._calls or self.dirty
        timeout = -1.0
        if busy:
            timeout = 0.0
        elif self._timers:
            timeout = max(0.0, self._timers[0][0] - time.monotonic())
        for fd, events in self._epoll.poll(timeout):
            call = self._on.get(fd)
            if call is not None:
                call(events)
        if self._timers:
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2].complete()
        while self._calls:
            self._calls.popleft()()
        while self.ready:
            self.ready.popleft().step()
        while self.dirty:
            self.dirty.pop()()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Turn until ``coroutine`` ends; its result."""
        task = self.spawn(coroutine)
        while not task.done:
            self.turn()
        if task.error is not None:
            raise task.error
        return task.value

    def close(self) -> None:
        for fd in list(self._on):
            self.forget(fd)
        self._epoll.close()
        with self._gate:
            os.close(self._wake)
            self._wake = -1
