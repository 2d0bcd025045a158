"""Views in ZooKeeper, through kazoo: ``PATH/view`` is the one that stands, ``PATH/members`` who is here.

A node's version counts how often it was set, from 0, so view n is set where the version is n - 2. Members are ephemeral
sequential nodes: they go with their session, and their numbers say who came first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import (
    BadVersionError,
    ConnectionLoss,
    KazooException,
    NodeExistsError,
    NoNodeError,
    OperationTimeoutError,
    SessionExpiredError,
)
from kazoo.handlers.threading import KazooTimeoutError

from stretto.errors import NetworkError, Refused
from stretto.links.addresses import join
from stretto.membership.messages import Seat, View
from stretto.membership.stores.store import LIFETIME, PATIENCE, Place, Seal

_AGAIN: Final = (ConnectionLoss, SessionExpiredError, OperationTimeoutError)
_PAUSE: Final = 0.1


def connect(place: Place, seal: Seal) -> ZooKeeper:
    """A session with the servers of ``place``.

    Raises:
        NetworkError: none of them answers.
    """
    hosts = ",".join(join(*server) for server in place.servers)
    client = KazooClient(hosts, timeout=LIFETIME)
    try:
        client.start(PATIENCE)
    except KazooTimeoutError as e:
        client.close()
        raise NetworkError(f"no ZooKeeper answered at {hosts} in {PATIENCE:g} s; does it run there?") from e
    return ZooKeeper(client, place.path, seal)


class ZooKeeper:
    """A :class:`~stretto.membership.stores.Store`."""

    def __init__(self, client: KazooClient, path: str, seal: Seal) -> None:
        self._client, self._seal = client, seal
        self._view, self._members = f"{path}/view", f"{path}/members"
        self._seat: Seat | None = None
        self._gone = False
        self._ask(lambda: client.ensure_path_async(self._members))
        client.add_listener(self._session_changed)

    def latest(self) -> View | None:
        try:
            data, stat = self._ask(lambda: self._client.get_async(self._view))
        except NoNodeError:
            return None
        view = self._seal.open(View, data)
        if view.number != stat.version + 1:
            raise Refused(f"view {view.number} was set {stat.version + 1} times at {self._view}; choose another path")
        return view

    def decide(self, view: View) -> View:
        data = self._seal.close(view)
        try:
            if view.number == 1:
                self._ask(lambda: self._client.create_async(self._view, data))
            else:
                self._ask(lambda: self._client.set_async(self._view, data, view.number - 2))
        except (NodeExistsError, BadVersionError):
            pass  # another was first, or our own word came through before the connection broke
        except NoNodeError:
            raise NetworkError(f"{self._view} is gone: somebody deleted it under the run; start it again") from None
        stands = self.latest()
        assert stands is not None
        return stands

    def announce(self, seat: Seat) -> None:
        self._seat = seat
        data, path = self._seal.close(seat), f"{self._members}/{seat.uid}-"
        self._ask(lambda: self._client.create_async(path, data, ephemeral=True, sequence=True))

    def present(self) -> tuple[Seat, ...]:
        names = self._ask(lambda: self._client.get_children_async(self._members))
        seats: dict[int, Seat] = {}
        for name in sorted(names, key=lambda name: name.rpartition("-")[2]):
            seat = self._member(f"{self._members}/{name}")
            if seat is not None:
                seats.setdefault(seat.uid, seat)
        return tuple(seats.values())

    def _member(self, path: str) -> Seat | None:
        try:
            data, _ = self._ask(lambda: self._client.get_async(path))
        except NoNodeError:
            return None
        return self._seal.open(Seat, data)

    def watch(self, changed: Callable[[], object]) -> None:
        def look(*_: Any) -> None:
            changed()

        self._client.DataWatch(self._view, look)
        self._client.ChildrenWatch(self._members, look)

    def forget(self) -> None:
        with contextlib.suppress(NoNodeError):
            self._ask(lambda: self._client.delete_async(self._view))

    def close(self) -> None:
        self._gone = True
        self._client.stop()
        self._client.close()

    def _ask(self, begin: Callable[[], Any]) -> Any:
        """The result of an operation, begun again when the connection breaks under it."""
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                return begin().get(timeout=max(0.0, ends - time.monotonic()))
            except KazooTimeoutError as e:
                raise NetworkError(f"ZooKeeper has not answered for {PATIENCE:g} s; does it run?") from e
            except _AGAIN:
                time.sleep(_PAUSE)
            except (NodeExistsError, BadVersionError, NoNodeError):
                raise
            except KazooException as e:
                raise NetworkError(f"ZooKeeper refuses ({type(e).__name__} {e}); check its access control") from e

    def _session_changed(self, state: str) -> None:
        """Our node went with our session; kazoo makes another session, and we are in it."""
        if state == KazooState.LOST and self._seat is not None and not self._gone:
            self._client.handler.spawn(self.announce, self._seat)
