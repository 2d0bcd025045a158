"""Forking a process that has threads.

A fork copies the locks that other threads hold in that moment, and leaves the threads behind: in the child nobody will
release them. Python sees to its own locks and the C library to its, but OpenSSL does not to its own, and a child whose
copy is locked stands still in its first handshake. So a child tries them before anything else, and one that stands
still is ended, and another is forked.

Ctrl-C in the moment of the fork is held back until both sides know what it means to them; what Python runs there
swallows it.
"""

from __future__ import annotations

import hmac
import os
import select
import signal
import ssl
import threading
from collections.abc import Callable
from typing import Final, NoReturn

from stretto.errors import StrettoError

_PATIENCE: Final = 2.0
"""Seconds for what takes milliseconds."""
_TRIES: Final = 20


def fork(child: Callable[[], NoReturn]) -> int:
    """The pid of a new process that runs ``child``, which begins with SIGINT blocked."""
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(_TRIES):
            pid = _try(child)
            if pid is not None:
                return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    raise StrettoError(
        f"{_TRIES} processes were forked and none can use OpenSSL: other threads of this process hold its locks; begin "
        "them after stretto.join()"
    )


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
    """Can a thread of this process use OpenSSL?"""
    trying = threading.Thread(target=_use, daemon=True)
    trying.start()
    trying.join(_PATIENCE)
    return not trying.is_alive()


def _use() -> None:
    hmac.digest(b"key", b"message", "sha256")
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
