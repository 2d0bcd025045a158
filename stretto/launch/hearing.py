"""Processes that were started, heard and buried: the launcher's poll over their pipes, their ends and our signals."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, Self

from stretto.launch.life import Life
from stretto.launch.output import Pipe
from stretto.launch.processes import Warden

_TICK: Final = 0.05
_HOLD: Final = 2.0
"""Seconds after which a traceback whose agent lives on is shown: it was caught, and logged."""
_LINGER: Final = 2.0
"""Seconds that an agent's other processes have when the agent has ended."""

Show = Callable[[str, bool], None]


class Hearing:
    """All lives of a launch. A context manager: at its end none is left.

    Args:
        show: gets every line, and whether it is of standard error.
        on_signal: gets the number of a SIGINT or SIGTERM of ours.
    """

    def __init__(self, show: Show, on_signal: Callable[[int], None]) -> None:
        self.show = show
        self.muted = False
        """Standard error is read and not shown: all are being ended, and complain."""
        self._on_signal = on_signal
        self._lives: list[Life] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._warden = self._stack.enter_context(Warden())
        self._selector = self._stack.enter_context(selectors.DefaultSelector())
        self._selector.register(self._stack.enter_context(_signals(self._on_signal)), selectors.EVENT_READ)
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            for life in list(self._lives):
                self.finish(life)

    @property
    def folder(self) -> Path:
        """Private to this launch, and gone with it."""
        return self._warden.folder

    def start(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        prefix: str = "",
        piped: bool = True,
        guarded: bool = True,
        descriptors: Sequence[int] = (),
    ) -> Life:
        """Start ``command``: its lines come behind ``prefix`` where they are ``piped``; see :meth:`Warden.start`."""
        group = self._warden.start(command, environ, piped=piped, guarded=guarded, descriptors=descriptors)
        life = Life(group, prefix, time.monotonic())
        self._lives.append(life)
        self._selector.register(group.watch, selectors.EVENT_READ, life)
        for pipe in life.pipes:
            self._selector.register(pipe.source, selectors.EVENT_READ, (life, pipe))
        return life

    def poll(self) -> list[Life]:
        """Sleep until something happens, or for a moment; those that have ended since."""
        ended = []
        for key, _ in self._selector.select(_TICK):
            if isinstance(key.data, Life):
                self._bury(key.data)
                ended.append(key.data)
            elif key.data is None:
                os.read(key.fd, 64)
            else:
                self._pass_on(*key.data)
        return ended

    def age(self, now: float) -> None:
        """What time alone brings about."""
        for life in list(self._lives):
            if life.running:
                since = life.held.since
                if not self.muted and since is not None and now - since > _HOLD:
                    self.release(life)
            elif life.group.gone() or now - life.ended_at > _LINGER:
                self._read_the_rest(life)
                if life.code == 0 and not self.muted:
                    self.release(life)
                self.finish(life)

    def release(self, life: Life) -> None:
        """Show the traceback that was held back."""
        for line in life.held.release():
            self.show(line, True)

    def finish(self, life: Life) -> None:
        """Whatever is left of it goes now."""
        if life.gone:
            return
        life.group.send(signal.SIGKILL)
        if life.running:
            life.ended(self._reap(life), time.monotonic())
        life.group.bury()
        life.gone = True
        self._lives.remove(life)
        self._warden.forget(life.group)
        for pipe in life.pipes:
            self._ignore(pipe)
            pipe.close()

    def _bury(self, life: Life) -> None:
        code = self._reap(life)
        self._read_the_rest(life)
        life.ended(code, time.monotonic())

    def _reap(self, life: Life) -> int:
        self._selector.unregister(life.group.watch)
        return life.group.reap()

    def _pass_on(self, life: Life, pipe: Pipe) -> None:
        self._print(life, pipe, pipe.read())
        if not pipe.open:
            self._ignore(pipe)

    def _read_the_rest(self, life: Life) -> None:
        for pipe in life.pipes:
            if pipe.open:
                self._print(life, pipe, pipe.read_all())

    def _print(self, life: Life, pipe: Pipe, lines: list[str]) -> None:
        if pipe is life.err:
            lines = life.held.take(lines, time.monotonic())
            if self.muted:
                return
        for line in lines:
            self.show(line, pipe is life.err)

    def _ignore(self, pipe: Pipe) -> None:
        if pipe.source in self._selector.get_map():
            self._selector.unregister(pipe.source)


@contextlib.contextmanager
def _signals(heard: Callable[[int], None]) -> Iterator[socket.socket]:
    """Hear of SIGINT and SIGTERM, and wake a poll of the socket. Outside the main thread Python allows neither."""
    read, write = socket.socketpair()
    write.setblocking(False)

    def handle(number: int, frame: FrameType | None) -> None:
        heard(number)
        with contextlib.suppress(BlockingIOError):
            write.send(b"\0")

    with read, write:
        if threading.current_thread() is not threading.main_thread():
            yield read
            return
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield read
        finally:
            for number, old in before.items():
                signal.signal(number, old)
