"""Control connections of our own for tests: a node in a thread, in a process, or played by the test."""

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

from stretto.links import addresses as places
from stretto.links.loop import Loop
from stretto.membership.connection import Door
from stretto.membership.control import Control
from stretto.membership.dialling import dial
from stretto.membership.messages import Decoder, Hello, Message, Seat, encode

SECRET = "a long and random secret"
PATIENCE = 20.0


def seat(uid: int, *control: str) -> Seat:
    return Seat(uid, uid, "here", os.getpid(), (), control)


def door(uid: int, secret: str = SECRET) -> Door:
    def no_certificate() -> Any:
        raise AssertionError("TLS was not expected")

    return Door(secret, uid, no_certificate)


class Node:
    """A Control with a listener and a loop in a thread of its own; what it was told is in ``told``."""

    def __init__(self, uid: int, state: Callable[[], str] = lambda: "R") -> None:
        self.uid = uid
        self.said: list[str] = []
        self.told: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.state = state
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = places.join(*self.listener.getsockname()[:2])
        self.seat = seat(uid, self.address)
        self.loop: Loop
        self.control: Control
        self._begun, self._over = threading.Event(), False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Node:
        self.thread.start()
        assert self._begun.wait(PATIENCE)
        return self

    def _run(self) -> None:
        self.loop = Loop()
        self.control = Control(
            self.loop,
            self.seat,
            SECRET,
            [self.listener],
            heard=lambda *what: self.told.put(("heard", *what)),
            met=lambda *what: self.told.put(("met", *what)),
            lost=lambda *what: self.told.put(("lost", *what)),
            say=self.said.append,
            state=self.state,
        )
        self._begun.set()
        while not self._over:
            self.loop.turn()
        self.loop.close()

    def do(self, function: Callable[[], Any]) -> Any:
        """``function()`` in the loop's thread."""
        answer: queue.Queue[Any] = queue.Queue()
        self.loop.call(lambda: answer.put(function()))
        return answer.get(timeout=PATIENCE)

    def next(self, *kinds: str) -> tuple[Any, ...]:
        """The next thing it was told, of these kinds if any are given."""
        ends = time.monotonic() + PATIENCE
        while True:
            told = self.told.get(timeout=max(0.01, ends - time.monotonic()))
            if not kinds or told[0] in kinds:
                return told

    def dials(self, other: Seat) -> None:
        self.do(lambda: self.control.dial(other, lambda: Hello(self.seat, 2, 0)))

    def end(self) -> None:
        if not self._over:
            self.do(self.control.close)
            self._over = True
            self.loop.call(lambda: None)
            self.thread.join(PATIENCE)


def call(node: Node, uid: int, secret: str = SECRET, peer: int | None = None) -> socket.socket:
    """A proven connection of our own, on which nothing has been said."""
    return dial(node.address, door(uid, secret), node.uid if peer is None else peer, "the node")


def enter(node: Node, uid: int) -> socket.socket:
    sock = call(node, uid)
    sock.sendall(encode(Hello(seat(uid), 2, 0)))
    assert node.next()[:2] == ("met", uid)
    return sock


def heard(sock: socket.socket, *ignored: type[Message]) -> Message | None:
    """The next message that is not ignored; None at the end."""
    sock.settimeout(PATIENCE)
    decoder = Decoder(1 << 16)
    while True:
        data = sock.recv(decoder.wants)
        if not data:
            return None
        for message in decoder.feed(data):
            if not isinstance(message, ignored):
                return message


@contextlib.contextmanager
def process(function: Callable[[], None]) -> Iterator[int]:
    """A forked process that runs ``function`` and is killed at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def lives(uid: int, other: Seat, state: Callable[[], str] = lambda: "R") -> Callable[[], None]:
    """What a process does that dials ``other`` and then pulses for good."""

    def life() -> None:
        Node(uid, state).start().dials(other)
        time.sleep(10 * PATIENCE)

    return life


def pulsed(node: Node, uid: int) -> None:
    """Wait until ``node`` has a rhythm of ``uid``."""
    ends = time.monotonic() + PATIENCE
    while len(node.do(lambda: node.control._lines[uid].vigil._rhythm._gaps)) < 2:
        assert time.monotonic() < ends
        time.sleep(0.01)


def until(true: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)
