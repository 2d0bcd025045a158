"""The control connections of one process: who is there, what they say, and what it means when they stop.

Theory of operation. A process has one connection to each of those it keeps; all live in one loop, in a thread of their
own, and carry nothing but small messages, so that neither a long tensor operation nor data holds them up. Every
:data:`PULSE` seconds each carries a pulse both ways. A tick of the loop sends ours and judges theirs
(:mod:`~stretto.membership.suspicion`); when we did not tick ourselves, stopped or starved, everybody is forgiven that
time. Time is monotonic: clocks may jump.

When two dial each other, the connection that the lower uid dialled stands; a second one in the same direction replaces
the first, which its dialer has given up.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Final

from stretto.errors import NetworkError, ProtocolError
from stretto.links.loop import Loop, Waiter
from stretto.links.tls import make_certificate
from stretto.membership.connection import Connection, Door, Ended
from stretto.membership.dialling import Dialler, Found
from stretto.membership.messages import Hello, Message, Pulse, Seat, encode
from stretto.membership.reception import Reception
from stretto.membership.suspicion import Suspicion, Vigil, What, ending

PULSE: Final = 0.2


class _Line:
    """A connection, what its pulses show, and whether we dialled it."""

    def __init__(self, uid: int, connection: Connection, *, dialled: bool) -> None:
        self.uid = uid
        self.connection = connection
        self.dialled = dialled
        self.vigil = Vigil()
        self.round = 0


class Control:
    """Answers, dials and keeps control connections. Every method is called in the loop's thread, and so are these:

    Args:
        seat: ours; ``seat.uid`` is what we prove.
        listeners: where we answer; they are ours from now on.
        heard: ``heard(uid, message)``: all but its Hello and its pulses.
        met: ``met(uid, hello)``: it is connected; ``hello`` is its first word, or None where we dialled or adopted.
        lost: ``lost(uid, what, why)``: its connection is gone, or could not be made. ``what`` is one of
            :data:`~stretto.membership.suspicion.What`, ``why`` words that follow its name. Not after :meth:`drop`.
        say: told, in words, which strangers were refused, and why.
        round: the latest that our trainer has begun.
        state: our trainer's state, a letter of /proc/PID/stat (:func:`process_state`).

    None of them is called from inside a method of ours. A second ``met`` of one uid without ``lost`` means that another
    connection has taken the place of the first: what was said last on that may not have arrived.
    """

    def __init__(
        self,
        loop: Loop,
        seat: Seat,
        secret: str,
        listeners: Iterable[socket.socket] = (),
        *,
        heard: Callable[[int, Message], object],
        met: Callable[[int, Hello | None], object],
        lost: Callable[[int, What, str], object],
        say: Callable[[str], object] = lambda line: None,
        state: Callable[[], str] = lambda: "R",
        round: Callable[[], int] = lambda: 0,
    ) -> None:
        door = Door(secret, seat.uid, cache(make_certificate))
        self._loop, self._uid, self._state, self._round = loop, seat.uid, state, round
        self._heard, self._met, self._lost = heard, met, lost
        self._reception = Reception(loop, door, self._enter, say)
        self._dialler = Dialler(loop, door, seat.host, self._found)
        self._first_words: dict[int, Callable[[], Hello]] = {}
        self._lines: dict[int, _Line] = {}
        self._open = True
        self._pulses = 0
        self._ticked = time.monotonic()
        for listener in listeners:
            self.answer(listener)
        self._loop.spawn(self._beat()).then(_raise)

    def answer(self, listener: socket.socket) -> None:
        """Accept on one more listening socket, which is ours from now on."""
        self._reception.answer(listener)

    def dial(self, seat: Seat, hello: Callable[[], Hello]) -> None:
        """Begin to connect, unless we do: ``met(uid, None)`` once ``hello()`` is said, or ``lost`` with the reason."""
        self._first_words[seat.uid] = hello
        self._dialler.dial(seat)

    def adopt(self, uid: int, sock: socket.socket) -> None:
        """Keep a proven connection on which our Hello has been said (:func:`stretto.membership.entry.enter`)."""
        self._loop.call(lambda: self._adopt(uid, sock))

    def send(self, uid: int, *messages: Message) -> None:
        """Say it, if we are connected; whoever is not hears nothing."""
        line = self._lines.get(uid)
        if line is None:
            return
        try:
            line.connection.send(b"".join(map(encode, messages)))
            self._watch(line)
        except ProtocolError as e:
            suspicion = Suspicion("stopped", str(e))
            self._loop.call(lambda: self._lose(line, suspicion))

    def drop(self, uid: int) -> None:
        """End the connection, once what was said on it has arrived, or stop dialling; ``lost`` is not called."""
        self._dialler.cancel(uid)
        line = self._lines.pop(uid, None)
        if line is not None:
            self._reception.see_out(line.connection)

    def connected(self) -> tuple[int, ...]:
        """The uids of those that we are connected to."""
        return tuple(self._lines)

    def rounds(self) -> dict[int, int]:
        """How far those that we are connected to have come, by their last pulse; and we."""
        return {self._uid: self._round()} | {line.uid: line.round for line in self._lines.values()}

    async def farewell(self) -> None:
        """Drop everybody, wait until what was said has arrived (a second at most), and close."""
        for uid in self.connected():
            self.drop(uid)
        while self._reception.saying_goodbye:
            await self._loop.sleep(0.01)
        self.close()

    def close(self) -> None:
        """End everything at once. May be called again."""
        self._open = False
        self._dialler.close()
        self._reception.close()
        for line in self._lines.values():
            self._shut(line)
        self._lines.clear()

    # Coming

    def _enter(self, c: Connection, hello: Hello, rest: list[Message]) -> None:
        line = _Line(hello.seat.uid, c, dialled=False)
        self._meet(line, hello)
        self._take(line, rest)

    def _found(self, uid: int, found: Found) -> None:
        hello = self._first_words.pop(uid)
        if isinstance(found, socket.socket):
            self._adopt(uid, found, hello())
        elif uid not in self._lines:
            self._lost(uid, found.what, found.why)

    def _adopt(self, uid: int, sock: socket.socket, *words: Message) -> None:
        if not self._open:
            sock.close()
            return
        try:
            ip, port, *_ = sock.getpeername()
            line = _Line(uid, Connection(sock, ip, port, uid=uid), dialled=True)
        except OSError as e:
            sock.close()
            self._lost(uid, "closed", f"its connection broke ({e.strerror or e})")
            return
        line.connection.send(b"".join(map(encode, words)))
        self._meet(line, None)
        self._serve(line, select.EPOLLIN)  # TLS may have read ahead

    def _meet(self, line: _Line, hello: Hello | None) -> None:
        old = self._lines.get(line.uid)
        if old is not None and old.dialled != line.dialled and old.dialled == (self._uid < line.uid):
            self._reception.see_out(line.connection)
            return
        if old is not None:
            self._shut(old)
        self._lines[line.uid] = line
        self._watch(line)
        self._met(line.uid, hello)

    # Talking

    def _is_kept(self, line: _Line) -> bool:
        return self._lines.get(line.uid) is line

    def _watch(self, line: _Line) -> None:
        events = select.EPOLLIN | (select.EPOLLOUT if line.connection.wants_write else 0)
        self._loop.watch(line.connection.fd, events, lambda ready: self._serve(line, ready))

    def _serve(self, line: _Line, events: int) -> None:
        if not self._is_kept(line):
            return
        c, now, before = line.connection, time.monotonic(), line.connection.taken
        if events & select.EPOLLOUT:
            c.flush()
        try:
            messages = c.read()
        except Ended:
            self._lose(line, ending("closed"))
        except NetworkError as e:
            self._lose(line, Suspicion("closed", str(e)))
        except OSError as e:
            reset = isinstance(e, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError)  # the last: as TLS writes
            self._lose(line, ending("reset" if reset else "unreachable", line.vigil.quiet(now)))
        else:
            if c.taken > before:
                line.vigil.word(now)
            self._watch(line)
            self._take(line, messages)

    def _take(self, line: _Line, messages: list[Message]) -> None:
        for message in messages:
            if not self._is_kept(line):
                return
            match message:
                case Pulse():
                    line.vigil.pulse(time.monotonic(), message.state)
                    line.round = message.round
                case Hello():
                    self._lose(line, Suspicion("closed", "it said Hello twice"))
                case _:
                    self._heard(line.uid, message)

    # Every tick

    async def _beat(self) -> None:
        while self._open:
            self._tick(time.monotonic())
            await self._loop.sleep(PULSE)

    def _tick(self, now: float) -> None:
        late, self._ticked = now - self._ticked - PULSE, now
        self._pulses += 1
        pulse = encode(Pulse(self._pulses, self._state(), self._round()))
        for line in list(self._lines.values()):
            if self._is_kept(line):
                if late > PULSE:
                    line.vigil.forgive(late)
                self._beat_once(line, pulse, now)
        if self._open:
            self._reception.tick(now)

    def _beat_once(self, line: _Line, pulse: bytes, now: float) -> None:
        c = line.connection
        if not c.wants_write:
            c.send(pulse)
            self._watch(line)
        suspicion = None if line.vigil.is_well(now) else line.vigil.judge(now, c.acks())
        if suspicion is not None:
            self._lose(line, suspicion)

    # Going

    def _lose(self, line: _Line, suspicion: Suspicion) -> None:
        if self._is_kept(line):
            del self._lines[line.uid]
            self._shut(line)
            self._lost(line.uid, suspicion.what, suspicion.why)

    def _shut(self, line: _Line) -> None:
        self._loop.forget(line.connection.fd)
        line.connection.shut()


def process_state(pid: int) -> str:
    """The state letter of a process: ``R`` runs, ``S`` and ``D`` wait, ``T`` is stopped; ``X`` when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return f.read().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return "X"


def _raise(task: Waiter) -> None:
    if task.error is not None:
        raise task.error
