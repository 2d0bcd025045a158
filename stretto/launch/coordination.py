"""The process that :mod:`stretto.launch.coordinator` starts: a coordinator, until nobody needs it any more."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final, Protocol

import msgspec

from stretto.errors import StrettoError, UsageError
from stretto.launch.coordinator import DONE, Answer, Call, read_line
from stretto.membership import Coordinator
from stretto.membership.messages import FOUNDER
from stretto.membership.stores import Store, open_store
from stretto.trace import Trace

LONELY: Final = 1.0
"""Seconds without any agent after which a run whose starter was killed is over: less than the next attempt takes."""
_TICK: Final = 0.1


class Present(Protocol):
    """What a coordinator knows of its agents."""

    def present(self) -> int: ...
    def waiting_for(self) -> tuple[int, ...]: ...


def main(descriptor: int) -> None:
    """Coordinate as the other end of the lifeline says."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as lifeline, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        line = read_line(lifeline)
        if not line:
            return
        try:
            coordinator = _listen(msgspec.json.decode(line, type=Call))
        except StrettoError as e:
            _answer(lifeline, Answer(refused=str(e)))
            return
        with coordinator:
            _answer(lifeline, Answer(address=coordinator.address))
            stay(coordinator, lifeline)


def stay(coordinator: Present, lifeline: socket.socket, lonely: float = LONELY) -> None:
    """Return when the starter is gone, and with it everybody who needs ``coordinator``."""
    dismissed = read_line(lifeline) == DONE
    patience = 0.0 if dismissed else lonely
    alone_since = time.monotonic()
    while True:
        # Before all have come they may wait for one that its starter took along.
        if coordinator.present() and (dismissed or not coordinator.waiting_for()):
            alone_since = time.monotonic()
        elif time.monotonic() - alone_since >= patience:
            return
        time.sleep(_TICK)


def _listen(call: Call) -> Coordinator:
    ends = time.monotonic() + call.patience
    path = os.environ.get("STRETTO_TRACE")
    trace = Trace(Path(path) if path else None, FOUNDER)
    while True:
        try:
            return Coordinator(
                call.size,
                call.secret,
                call.host,
                call.port,
                say=_say,
                servers=call.servers,
                min_agents=call.min_agents,
                store=_store(call),
                event=trace.event,
            )
        except UsageError as e:
            if time.monotonic() > ends or getattr(e.__cause__, "errno", None) != errno.EADDRINUSE:
                raise
        time.sleep(_TICK)


def _store(call: Call) -> Store | None:
    return open_store(call.store, call.secret) if call.store else None


def _answer(lifeline: socket.socket, answer: Answer) -> None:
    lifeline.sendall(msgspec.json.encode(answer) + b"\n")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # whoever read it may be gone
        print(f"stretto: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
