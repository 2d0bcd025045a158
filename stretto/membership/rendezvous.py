"""The coordinator: calls the first view together, leads as long as it lives, and has one vote. A thread."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from stretto.core import Network
from stretto.errors import UsageError
from stretto.links import addresses as places
from stretto.membership.driver import Driver, Tell, Ways
from stretto.membership.listening import listen
from stretto.membership.messages import FOUNDER, STORE, Seat
from stretto.membership.stores.store import Store
from stretto.membership.views import Views

UNKNOWN: Final = Network()


class Coordinator:
    """Calls a run of ``size`` agents together, and leads it. A context manager.

    Args:
        size: how many agents there will be at first.
        secret: what they prove.
        host: where to listen; empty for every interface.
        port: 0 for any that is free.
        network: what is known of the network between them; every agent is told the same.
        say: told, in words, who was refused or denied, and whom training waits for; called in the coordinator's thread.
        servers: how many servers there will be at first, beside the agents; more may come at any time.
        min_agents: go on with as few agents when there is no majority.
        event: ``event(kind, **fields)`` of a trace.
        store: has the only vote in place of the agents; it is closed with the coordinator.

    Raises:
        UsageError: the port is in use, the address is not this machine's, or the store has another run.
    """

    def __init__(
        self,
        size: int,
        secret: str,
        host: str = "",
        port: int = 0,
        *,
        network: Network = UNKNOWN,
        say: Callable[[str], object] = lambda line: None,
        servers: int = 0,
        min_agents: int | None = None,
        store: Store | None = None,
        event: Callable[..., object] = lambda kind, **fields: None,
    ) -> None:
        if size < 1:
            raise UsageError(f"{size} agents cannot train; there must be at least 1")
        if not secret:
            raise UsageError("the secret is empty; give the coordinator and every agent the same long random one")
        if store is not None:
            _take_over(store)
        listener = listen(host, port)
        port = listener.getsockname()[1]
        hosts = (host,) if host else places.candidates()
        control = tuple(places.join(ip, port) for ip in hosts)
        self.address = control[0]
        self._over = False
        seat = Seat(new_uid(), FOUNDER, places.machine_id(), os.getpid(), (), control)
        views = Views.founder(seat, size, network, min_agents, servers=servers, store=store is not None)
        self._driver = Driver(
            views,
            Ways(secret, (listener,), store=store),
            Tell(say=say, over=self._end, event=event),
            "stretto-coordinator",
        )

    def start(self) -> Self:
        self._driver.start()
        return self

    def close(self) -> None:
        """End the thread and every connection. Whoever still waits hears of it at once. May be called again."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def waiting_for(self) -> tuple[int, ...]:
        """Labels that have not come yet; none once the first view has begun."""
        return self._driver.missing

    def present(self) -> int:
        """Agents and servers that are here now."""
        return self._driver.present

    def over(self) -> bool:
        """Have all agents said goodbye?"""
        return self._over

    def _end(self) -> None:
        self._over = True


def new_uid() -> int:
    """Names one life of one process: random, so that no two ever share it."""
    return secrets.randbelow(STORE - 1) + 1


def _take_over(store: Store) -> None:
    """Nobody goes on with a run of which nobody is here."""
    if store.present():
        raise UsageError("another run is under way at this place in the store; give each run a path of its own")
    store.forget()
