"""Where connections come in and go out: strangers until they have proven the secret and said Hello, and farewells.

Strangers are bounded: at most :data:`MOST_STRANGERS` at a time, each with a few hundred bytes of memory and ten
seconds, or one second when others queue; the rest wait in the kernel's backlog.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from typing import Final

from stretto.errors import NetworkError, Refused
from stretto.links.handshake import DEADLINE
from stretto.links.loop import Loop
from stretto.membership.connection import HURRY, Connection, Door, Ended
from stretto.membership.messages import Hello, Message

MOST_STRANGERS: Final = 128
_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Reception:
    """Accepts, and hands over who has said Hello: ``enters(connection, its Hello, what it said after that)``."""

    def __init__(
        self,
        loop: Loop,
        door: Door,
        enters: Callable[[Connection, Hello, list[Message]], object],
        say: Callable[[str], object],
    ) -> None:
        self._loop, self._door, self._enters, self._say = loop, door, enters, say
        self._here: dict[int, Connection] = {}
        self._listeners: list[socket.socket] = []
        self._accepting = False
        self._full = False

    @property
    def saying_goodbye(self) -> bool:
        """Is anybody being seen out?"""
        return any(c.leaving for c in self._here.values())

    def answer(self, listener: socket.socket) -> None:
        """Accept on one more listening socket, which is ours from now on."""
        listener.setblocking(False)
        self._listeners.append(listener)
        self._accepting = False
        self._accept_while_there_is_room()

    def see_out(self, c: Connection) -> None:
        """Let our last word arrive, then end the connection."""
        c.say_goodbye()
        self._here[c.fd] = c
        self._watch(c)

    def tick(self, now: float) -> None:
        """End those whose time is over."""
        hurry = DEADLINE - HURRY if len(self._here) >= MOST_STRANGERS else 0.0
        for c in list(self._here.values()):
            if now + hurry > c.deadline:
                self._end(c, f"it did not prove the secret and say Hello within {DEADLINE - hurry:g} s")
        self._full = False
        self._accept_while_there_is_room()

    def close(self) -> None:
        """End all of them, and listen no more."""
        for c in list(self._here.values()):
            self._loop.forget(c.fd)
            c.shut()
        self._here.clear()
        for listener in self._listeners:
            self._loop.forget(listener.fileno())
            listener.close()
        self._listeners.clear()

    def _accept_while_there_is_room(self) -> None:
        room = not self._full and len(self._here) < MOST_STRANGERS
        if room == self._accepting:
            return
        self._accepting = room
        for listener in self._listeners:
            if room:
                self._loop.watch(listener.fileno(), select.EPOLLIN, self._accepts(listener))
            else:
                self._loop.forget(listener.fileno())

    def _accepts(self, listener: socket.socket) -> Callable[[int], None]:
        def ready(_: int) -> None:
            try:
                sock, (ip, port, *_rest) = listener.accept()
                c = Connection(sock, ip, port, door=self._door)
            except OSError as e:
                self._full = e.errno in _FULL  # they stay in the backlog until the next tick
            else:
                self._here[c.fd] = c
                self._watch(c)
            self._accept_while_there_is_room()

        return ready

    def _watch(self, c: Connection) -> None:
        events = select.EPOLLIN | (select.EPOLLOUT if c.wants_write else 0)
        self._loop.watch(c.fd, events, lambda ready: self._serve(c, ready))

    def _serve(self, c: Connection, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                c.flush()
            messages = c.read()
        except Refused as e:
            self._say(f"refused {c.who}: {e}")
            self.see_out(c)
        except Ended:
            self._end(c, "its connection was closed")
        except NetworkError as e:
            self._end(c, str(e))
        except OSError as e:
            self._end(c, f"its connection broke ({e.strerror or e})")
        else:
            self._watch(c)
            if messages:
                self._enter(c, messages)

    def _enter(self, c: Connection, messages: list[Message]) -> None:
        hello, *rest = messages
        if not isinstance(hello, Hello):
            self._end(c, f"it sent a {type(hello).__name__} before its Hello")
        elif hello.seat.uid != c.uid:
            self._end(c, f"it says that it is process {hello.seat.uid} and has proven to be {c.uid}")
        else:
            self._forget(c)
            self._enters(c, hello, rest)

    def _end(self, c: Connection, why: str) -> None:
        if not c.leaving:
            self._say(f"refused {c.who}: {why}")
        self._forget(c)
        c.shut()

    def _forget(self, c: Connection) -> None:
        del self._here[c.fd]
        self._loop.forget(c.fd)
        self._accept_while_there_is_room()
