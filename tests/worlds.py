"""The same coroutines on every kind of link. A new kind is a function here and its line in ``KINDS``."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, Protocol

import pytest

from stretto.core import Epoch, Link, Member
from stretto.errors import PeerLost
from stretto.links import connect
from stretto.links.connect import Switchboard, listen_tcp, listen_unix
from stretto.links.loop import Loop
from stretto.links.mesh import Mesh, Totals
from stretto.links.tls import Certificate, make_certificate
from stretto.sim import World

Make = Callable[[Any], Coroutine[Any, Any, Any]]
CHANNEL = 7
DEADLINE = 60.0
SECRET = "a secret"


class Kind(Protocol):
    def __call__(self, size: int, make: Make) -> list[Any]:
        """Run ``make(link)`` for ``size`` agents on one machine; what each returned or raised, by rank."""
        ...


@dataclass(frozen=True, slots=True)
class Lived:
    """What one agent's coroutine returned, and the bytes counted until then."""

    result: Any
    totals: Totals


def simulated(size: int, make: Make) -> list[Any]:
    return World(size, hosts=(0,) * size).run(make, keep_errors=True)


def streams(size: int, make: Make, *, over: str) -> list[Any]:
    lives = run_streams(over, size, make)
    return [life.result if isinstance(life, Lived) else life for life in lives]


KINDS: Final[dict[str, Kind]] = {
    "sim": simulated,
    "tcp": partial(streams, over="tcp"),
    "tls": partial(streams, over="tls"),
    "unix": partial(streams, over="unix"),
}
STREAMS: Final = ("tcp", "tls", "unix")


def run(
    kind: str, size: int, make: Callable[[Link], Coroutine[Any, Any, Any]], *, keep_errors: bool = False
) -> list[Any]:
    """Run ``make(link)`` for every agent over one exchange; their results by rank.

    The first error by rank that is no consequence of another's is raised; with ``keep_errors`` errors are results too.
    """
    results = KINDS[kind](size, make)
    if not keep_errors:
        raise_first(results)
    return results


def raise_first(results: Sequence[Any]) -> None:
    failed = [r for r in results if isinstance(r, BaseException)]
    if failed:
        raise min(failed, key=lambda error: isinstance(error, PeerLost))


def run_streams(
    over: str, size: int, make: Make, *, secrets: Sequence[str] | None = None
) -> list[Lived | BaseException]:
    """Each agent a thread with a loop, a mesh and real sockets. An agent that raises drops its connections at once."""
    listeners, members = [], []
    for rank in range(size):
        listener, address = listen(over)
        listeners.append(listener)
        members.append(Member(rank, "here", os.getpid(), (address,)))
    epoch = Epoch(1, tuple(members))
    ends: list[Any] = [None] * size

    def live(rank: int) -> None:
        secret = secrets[rank] if secrets else SECRET
        try:
            ends[rank] = _live(rank, epoch, secret, listeners[rank], over, make)
        except BaseException as e:
            ends[rank] = e

    with pytest.MonkeyPatch.context() as patch:
        if over == "tls":
            patch.setattr(connect, "is_here", lambda host: False)
        threads = [threading.Thread(target=live, args=(rank,), daemon=True) for rank in range(size)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(DEADLINE)
    hung = [rank for rank, t in enumerate(threads) if t.is_alive()]
    if hung:
        pytest.fail(f"agents {hung} hang (link {over})")
    return ends


def listen(over: str) -> tuple[socket.socket, str]:
    """A listener for one agent, and its address."""
    if over == "unix":
        return listen_unix()
    listener = listen_tcp("127.0.0.1")
    return listener, f"127.0.0.1:{listener.getsockname()[1]}"


def _live(rank: int, epoch: Epoch, secret: str, listener: socket.socket, over: str, make: Make) -> Lived:
    loop = Loop()

    def dial(peer: int) -> None:
        board.dial(peer)

    mesh = Mesh(loop, rank, epoch, dial)
    board = Switchboard(
        loop,
        epoch.members[rank],
        epoch.members,
        secret,
        _certificate(rank),
        unix=over == "unix",
        adopt=mesh.adopt,
        lose=mesh.lose,
    )
    board.answer(listener)

    async def whole() -> Lived:
        result = await make(mesh.link(CHANNEL))
        totals = mesh.totals()
        mesh.bye()
        return Lived(result, totals)

    try:
        lived: Lived = loop.run(whole())
        for _ in range(200):
            if not mesh.totals().connections:
                break
            loop.run(_moment(loop))
        return lived
    finally:
        board.close()
        loop.call(lambda: None)
        loop.turn()  # what was handed over last is adopted, and so closed
        mesh.close()
        loop.close()
        listener.close()


async def _moment(loop: Loop) -> None:
    await loop.sleep(0.005)


@cache
def _certificate(rank: int) -> Certificate:
    return make_certificate()
