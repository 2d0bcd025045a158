"""Forking a process that has threads.

A fork copies the locks that other threads hold in that moment, and leaves the threads behind: in the child nobody will
release them. Python sees to its own locks and the C library to its, but OpenSSL does not to its own, and a child whose
copy is locked stands still in its first handshake. So a child tries them before anything else, and one that stands
still is ended, and another is forked.

Ctrl-C in the moment of the fork is held back and comes after it: what Python runs there would swallow it. A mask would
not do, for another thread may take the signal.
"""

from __future__ import annotations

import hmac
import os
import select
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

from stretto.errors import StrettoError

_PATIENCE: Final = 2.0
"""Seconds for what takes milliseconds."""
_TRIES: Final = 20


def fork(child: Callable[[], NoReturn]) -> int:
    """The pid of a new process that runs ``child``. It hears no SIGINT before it says what that means to it."""
    with _held_back():
        for _ in range(_TRIES):
            pid = _try(child)
            if pid is not None:
                return pid
    raise StrettoError(
        f"{_TRIES} processes were forked and none can use OpenSSL: other threads of this process hold its locks; begin "
        "them after stretto.join()"
    )


@contextmanager
def _held_back() -> Iterator[None]:
    """SIGINT comes when this is over; in the child it does nothing."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        before(*heard[0])


def _try(child: Callable[[], NoReturn]) -> int | None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        if not _sound():
            os._exit(1)
        os.write(writing, b"+")
        os.close(writing)
        child()
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], 2 * _PATIENCE)
        if ready and os.read(reading, 1):
            return pid
    finally:
        os.close(reading)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _sound() -> bool:
    """Can a thread of this process, which has no other yet, use OpenSSL, and end?

    OpenSSL takes locks at a thread's end too, when Python has already forgotten it; so the system is asked.
    """
    until = time.monotonic() + _PATIENCE
    threading.Thread(target=_use, daemon=True).start()
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > until:
            return False
        time.sleep(0.0005)
    return True


def _use() -> None:
    hmac.digest(b"key", b"message", "sha256")
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
