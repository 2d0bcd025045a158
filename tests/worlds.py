"""The same coroutines on every kind of link: simulated, TCP, TCP with TLS, Unix sockets."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from stretto.core import Epoch, Link, Member
from stretto.links import connect
from stretto.links.connect import Switchboard, listen_tcp, listen_unix
from stretto.links.loop import Loop
from stretto.links.mesh import Mesh, Totals
from stretto.links.tls import make_certificate
from stretto.sim import World

Make = Callable[[Link], Coroutine[Any, Any, Any]]
KINDS = ("sim", "tcp", "tls", "unix")


def run(kind: str, size: int, make: Make) -> list[Any]:
    """Run ``make(link)`` for every agent over one exchange; their results by rank."""
    if kind == "sim":
        return World(size).run(make)
    return [result for result, _ in run_streams(kind, size, make)]


def run_streams(kind: str, size: int, make: Make, *, secrets: Sequence[str] | None = None) -> list[tuple[Any, Totals]]:
    """Each agent a thread with a loop, a mesh and real sockets; (result, bytes counted) by rank."""
    listeners, members = [], []
    for rank in range(size):
        if kind == "unix":
            listener, address = listen_unix()
        else:
            listener = listen_tcp("127.0.0.1")
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        listeners.append(listener)
        members.append(Member(rank, "here", os.getpid(), (address,)))
    epoch = Epoch(1, tuple(members))
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def live(rank: int) -> None:
        loop = Loop()
        mesh = Mesh(loop, rank, epoch, lambda peer: board.dial(peer))
        board = Switchboard(
            loop,
            rank,
            1,
            epoch.members,
            secrets[rank] if secrets else "a secret",
            make_certificate(),
            unix=kind == "unix",
            adopt=mesh.adopt,
            lose=mesh.lose,
        )
        board.answer(listeners[rank])

        async def whole() -> Any:
            result = await make(mesh.link(7))
            totals = mesh.totals()
            mesh.bye()
            return result, totals

        try:
            results[rank] = loop.run(whole())
            for _ in range(200):
                if not mesh.totals().connections:
                    break
                loop.run(_moment(loop))
        except BaseException as e:
            errors.append(e)
        finally:
            board.close()
            mesh.close()
            loop.close()
            listeners[rank].close()

    with pytest.MonkeyPatch.context() as patch:
        if kind == "tls":
            patch.setattr(connect, "is_here", lambda host: False)
        threads = [threading.Thread(target=live, args=(rank,)) for rank in range(size)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    if errors:
        raise errors[0]
    return results


async def _moment(loop: Loop) -> None:
    await loop.sleep(0.005)
