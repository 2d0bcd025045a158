"""A process that serves, from here to the end of a ``with``."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

import torch

from stretto.bench.team import end_with_parent
from stretto.errors import ScriptFailed
from stretto.links.forking import fork

Ready = Callable[[str], None]
"""Says under which address it listens."""
Serve = Callable[[int, Ready], None]
"""Serves that many agents until SIGTERM ends it (SystemExit)."""
_GRACE: Final = 10.0
"""Seconds to end in."""


@contextlib.contextmanager
def serving(name: str, serve: Serve, agents: int) -> Iterator[str]:
    """The address at which ``serve`` listens, in a process of its own that ends with this.

    Raises:
        ScriptFailed: it could not begin, and has said why on standard error.
    """
    out, into = os.pipe()
    parent = os.getpid()

    def child() -> NoReturn:
        os.close(out)
        _be_server(serve, agents, into, parent)

    pid = fork(child)
    os.close(into)
    try:
        with open(out, encoding="utf-8") as said:
            address = said.readline().strip()
            if not address:
                raise ScriptFailed(f"the server of {name} could not begin; see above what it said")
            yield address
    finally:
        _end(pid)


def _be_server(serve: Serve, agents: int, into: int, parent: int) -> NoReturn:
    """The whole life of that process."""
    try:
        try:
            end_with_parent()
            if os.getppid() != parent:
                os._exit(1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit())
            torch.set_num_threads(1)
            serve(agents, lambda address: _say(into, address))
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
    finally:  # whatever is raised, and whenever: the stack above is another process's
        os._exit(0)


def _say(into: int, address: str) -> None:
    os.write(into, address.encode() + b"\n")


def _end(pid: int) -> None:
    gone = os.pidfd_open(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if not select.select([gone], [], [], _GRACE)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(gone)
    os.waitpid(pid, 0)
