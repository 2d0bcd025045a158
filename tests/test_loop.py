"""The driver of coroutines on real descriptors."""

from __future__ import annotations

import gc
import os
import select
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from stretto.links.loop import Loop, Task, Waiter


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


async def value(x: Any) -> Any:
    return x


async def waits(waiter: Waiter) -> Any:
    return await waiter


async def sleeps(loop: Loop, seconds: float, log: list[float]) -> None:
    await loop.sleep(seconds)
    log.append(seconds)


def test_a_coroutine_runs_to_its_result(loop: Loop) -> None:
    assert loop.run(value(3)) == 3


def test_what_a_coroutine_raises_comes_out_of_run(loop: Loop) -> None:
    async def fails() -> None:
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        loop.run(fails())


def test_the_first_outcome_of_a_waiter_stands(loop: Loop) -> None:
    waiter = Waiter()
    waiter.complete(1)
    waiter.complete(2)
    waiter.complete(error=KeyError())
    assert loop.run(waits(waiter)) == 1


def test_a_callback_on_a_waiter_that_is_done_is_called_at_once() -> None:
    waiter, called = Waiter(), []
    waiter.complete("x")
    waiter.then(lambda w: called.append(w.value))
    assert called == ["x"]


def test_sleepers_wake_in_the_order_of_their_times(loop: Loop) -> None:
    log: list[float] = []

    async def all_() -> None:
        await loop.together(tuple(sleeps(loop, s, log) for s in (0.02, 0.0, 0.01)))

    loop.run(all_())
    assert log == [0.0, 0.01, 0.02]


def test_a_task_can_be_awaited_by_another(loop: Loop) -> None:
    task = loop.spawn(value("done"))
    assert loop.run(waits(task)) == "done"


def test_a_cancelled_task_runs_its_finally_and_no_further(loop: Loop) -> None:
    log: list[str] = []

    async def long() -> None:
        try:
            await Waiter()
            log.append("never")
        finally:
            log.append("closed")

    task = loop.spawn(long())
    loop.run(value(None))
    task.cancel()
    task.cancel()
    loop.run(value(None))
    assert log == ["closed"]


def test_together_of_together_ends_all_that_it_began(loop: Loop) -> None:
    """An error on the outside reaches what is two levels inside."""
    closed: list[int] = []

    async def inner(i: int) -> None:
        try:
            await loop.sleep(1000)
        finally:
            closed.append(i)

    async def nested() -> None:
        await loop.together((inner(1), inner(2)))

    async def fails() -> None:
        await loop.sleep(0.001)
        raise KeyError

    async def all_() -> None:
        await loop.together((nested(), fails()))

    with pytest.raises(KeyError):
        loop.run(all_())
    assert sorted(closed) == [1, 2]


def test_a_call_from_another_thread_wakes_the_loop(loop: Loop) -> None:
    waiter = Waiter()
    thread = threading.Thread(target=lambda: loop.call(lambda: waiter.complete("woken")))
    thread.start()
    assert loop.run(waits(waiter)) == "woken"
    thread.join()


def test_calls_run_in_the_thread_of_the_loop_and_in_order(loop: Loop) -> None:
    seen: list[tuple[int, int]] = []
    waiter = Waiter()

    def see(i: int) -> None:
        seen.append((i, threading.get_ident()))

    def many() -> None:
        for i in range(1000):
            loop.call(partial(see, i))
        loop.call(waiter.complete)

    thread = threading.Thread(target=many)
    thread.start()
    loop.run(waits(waiter))
    thread.join()
    assert seen == [(i, threading.get_ident()) for i in range(1000)]


def test_a_descriptor_is_watched_until_it_is_forgotten(loop: Loop) -> None:
    reading, writing = os.pipe()
    heard: list[bytes] = []
    waiter = Waiter()

    def ready(_: int) -> None:
        heard.append(os.read(reading, 100))
        waiter.complete()

    loop.watch(reading, select.EPOLLIN, ready)
    os.write(writing, b"one")
    loop.run(waits(waiter))
    loop.forget(reading)
    loop.forget(reading)
    os.write(writing, b"two")
    loop.run(loop_sleep(loop))
    assert heard == [b"one"]
    os.close(reading)
    os.close(writing)


async def loop_sleep(loop: Loop) -> None:
    await loop.sleep(0.01)


def test_a_descriptor_may_be_forgotten_by_the_handler_of_another(loop: Loop) -> None:
    """Both are ready in one turn; the second must not be called on a stale registration."""
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def handler(me: int, other: int) -> Any:
        def ready(_: int) -> None:
            called.append(me)
            loop.forget(other)
            os.read(me, 1)

        return ready

    (a, _), (b, _) = pipes
    loop.watch(a, select.EPOLLIN, handler(a, b))
    loop.watch(b, select.EPOLLIN, handler(b, a))
    for _, writing in pipes:
        os.write(writing, b"x")
    loop.run(loop_sleep(loop))
    assert len(called) == 1
    for fd, _ in pipes:
        loop.forget(fd)
    for ends in pipes:
        for fd in ends:
            os.close(fd)


def test_what_was_posted_is_written_before_the_loop_sleeps(loop: Loop) -> None:
    log: list[str] = []
    waiter = Waiter()

    def flush() -> None:
        log.append("flushed")
        waiter.complete()

    async def posts() -> None:
        loop.dirty.add(flush)
        loop.dirty.add(flush)
        log.append("posted")
        await waiter

    loop.run(posts())
    assert log == ["posted", "flushed"]


def test_run_ends_with_its_task_though_others_still_wait(loop: Loop) -> None:
    other = loop.spawn(waits(Waiter()))
    assert loop.run(value(1)) == 1
    assert not other.done
    other.cancel()


def test_a_closed_loop_leaves_no_descriptor() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        loop = Loop()
        loop.run(value(1))
        loop.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_call_that_ends_the_loop_may_come_from_another_thread() -> None:
    """The loop may be closed by what is called before the caller has woken it; no other descriptor is written then."""
    for _ in range(300):
        ready, over = threading.Event(), threading.Event()
        loops: list[Loop] = []

        def live(ready: threading.Event = ready, over: threading.Event = over, loops: list[Loop] = loops) -> None:
            loop = Loop()
            loops.append(loop)
            ready.set()
            while not over.is_set():
                loop.ready.append(Task(loop, _nothing()))
                loop.turn()
            loop.close()

        thread = threading.Thread(target=live)
        thread.start()
        ready.wait()
        loops[0].call(over.set)
        loops[0].call(over.set)
        thread.join()
        loops[0].call(over.set)


async def _nothing() -> None:
    return None
