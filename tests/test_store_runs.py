"""Runs whose views a store decides: no majority need be alive, and newcomers find whoever is."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import stores as servers
from test_stores import SECRET, Run, run, server, until

from stretto.links import addresses as places
from stretto.membership.entry import enter
from stretto.membership.messages import STORE, Report, View
from stretto.membership.rendezvous import Coordinator
from stretto.membership.runner import Runner
from stretto.membership.stores import open_store

pytestmark = pytest.mark.network
__all__ = ["run", "server", "servers"]


def coordinates(address: str, size: int) -> None:
    Coordinator(size, SECRET, "127.0.0.1", store=open_store(address, SECRET)).start()


def trains(address: str, label: int, size: int, tell: Callable[[View], object]) -> None:
    """An agent that is always in the middle of a fence round, and wants in where it is not."""
    listener = socket.create_server(("127.0.0.1", 0))
    control = (places.join(*listener.getsockname()),)
    found = enter(address, SECRET, label, size, addresses=(), control=control, host="here", pid=os.getpid())
    todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def report() -> Report:
        return Report(found.seat.uid, 4, True, b"\0", True, True, "a model")

    runner = Runner(
        found.seat,
        SECRET,
        view=found.view,
        lead=found.sock,
        head=found.head,
        listener=listener,
        freeze=lambda number: todo.put(lambda: runner.frozen(number, report())),
        hold=lambda: todo.put(lambda: runner.fence(4)),
        install=tell,
        out=lambda why: todo.put(lambda: runner.ready("a model")),
        deny=print,
        say=print,
        event=lambda *what, **fields: None,
        store=open_store(address, SECRET),
    )
    runner.start()
    tell(found.view)
    if all(seat.uid != found.seat.uid for seat in found.view.seats):
        runner.ready("a model")
    while True:
        todo.get()()


class Process:
    """A forked process, and the views that it tells of."""

    def __init__(self, function: Callable[..., None], *args: Any, tells: bool = True) -> None:
        reading, writing = os.pipe()
        self.view: View | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                function(*args, *([lambda view: os.write(writing, msgspec.msgpack.encode(view))] if tells else []))
                time.sleep(1000)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writing)
        threading.Thread(target=self._read, args=(reading,), daemon=True).start()

    def _read(self, reading: int) -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 16):
                self.view = msgspec.msgpack.decode(data, type=View)

    def labels(self) -> list[int]:
        return [] if self.view is None else sorted(seat.label for seat in self.view.seats)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def begin(*what: Any, **how: Any) -> Process:
        made.append(Process(*what, **how))
        return made[-1]

    yield begin
    for process in made:
        process.kill()


def test_one_of_three_goes_on_without_a_majority_and_is_found_by_the_next(
    run: Run, start: Callable[..., Process]
) -> None:
    coordinator = start(coordinates, run.address, 3, tells=False)
    agents = [start(trains, run.address, label, 3) for label in range(3)]
    until(lambda: all(agent.labels() == [0, 1, 2] for agent in agents))
    assert agents[0].view is not None and agents[0].view.voters == (STORE,)
    for victim in (coordinator, agents[0], agents[2]):
        victim.kill()
    until(lambda: agents[1].labels() == [1])
    again = start(trains, run.address, 0, 3)
    until(lambda: agents[1].labels() == again.labels() == [0, 1])
    assert agents[1].view == again.view == run.open().latest()
