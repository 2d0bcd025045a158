"""Views in etcd (3.4 and later) through its JSON gateway: ``PATH/view`` is what stands, ``PATH/members/`` who is here.

A key's version counts how often it was put, from 1, so view n is put where the version is n - 1. Members' keys are
bound to leases, and their create revisions say who came first. Only the standard library is needed.
"""

from __future__ import annotations

import contextlib
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any, Final

from stretto.errors import NetworkError, Refused
from stretto.membership.messages import Seat, View
from stretto.membership.stores.gateway import Gateway, Stream
from stretto.membership.stores.store import LIFETIME, Place, Seal

_PAUSE: Final = 0.5


def connect(place: Place, seal: Seal) -> Etcd:
    """The store at the servers of ``place``.

    Raises:
        NetworkError: none of them answers.
    """
    gateway = Gateway(place.servers)
    gateway.ask("maintenance/status")
    return Etcd(gateway, place.path, seal)


class Etcd:
    """A :class:`~stretto.membership.stores.Store`."""

    def __init__(self, gateway: Gateway, path: str, seal: Seal) -> None:
        self._gateway, self._seal = gateway, seal
        self._view, self._members = f"{path}/view", f"{path}/members/"
        self._everything = _range(f"{path}/")
        self._gone = threading.Event()
        self._lease = ""
        self._stream: Stream | None = None

    def latest(self) -> View | None:
        return self._standing(self._gateway.ask("kv/range", key=_text(self._view)))

    def decide(self, view: View) -> View:
        key = _text(self._view)
        answer = self._gateway.ask(
            "kv/txn",
            compare=[{"key": key, "target": "VERSION", "result": "EQUAL", "version": str(view.number - 1)}],
            success=[{"requestPut": {"key": key, "value": _bytes(self._seal.close(view))}}],
            failure=[{"requestRange": {"key": key}}],
        )
        if answer.get("succeeded"):
            return view
        stands = self._standing(answer["responses"][0]["response_range"])
        if stands is None:
            raise NetworkError(f"{self._view} is gone: somebody deleted it under the run; start it again")
        return stands

    def announce(self, seat: Seat) -> None:
        first = not self._lease
        self._lease = self._gateway.ask("lease/grant", TTL=str(round(LIFETIME)))["ID"]
        key, value = _text(f"{self._members}{seat.uid}"), _bytes(self._seal.close(seat))
        self._gateway.ask("kv/put", key=key, value=value, lease=self._lease)
        if first:
            threading.Thread(target=self._stay, args=(seat,), name="stretto-etcd-lease", daemon=True).start()

    def present(self) -> tuple[Seat, ...]:
        found = self._gateway.ask("kv/range", **_range(self._members)).get("kvs", [])
        found.sort(key=lambda kv: int(kv["create_revision"]))
        return tuple(self._seal.open(Seat, b64decode(kv["value"])) for kv in found)

    def watch(self, changed: Callable[[], object]) -> None:
        threading.Thread(target=self._look, args=(changed,), name="stretto-etcd-watch", daemon=True).start()

    def forget(self) -> None:
        self._gateway.ask("kv/deleterange", key=_text(self._view))

    def close(self) -> None:
        self._gone.set()
        if self._stream is not None:
            self._stream.end()
        if self._lease:
            with contextlib.suppress(NetworkError):  # it runs out by itself
                self._gateway.ask("lease/revoke", ID=self._lease)

    def _standing(self, answer: dict[str, Any]) -> View | None:
        if not answer.get("kvs"):
            return None
        (kv,) = answer["kvs"]
        view = self._seal.open(View, b64decode(kv["value"]))
        if view.number != int(kv["version"]):
            raise Refused(f"view {view.number} was put {kv['version']} times at {self._view}; choose another path")
        return view

    def _stay(self, seat: Seat) -> None:
        """Keep our lease; a new one when it ran out while we could not."""
        while not self._gone.wait(LIFETIME / 3):
            with contextlib.suppress(NetworkError):  # it is asked again as long as we live
                kept = self._gateway.ask("lease/keepalive", ID=self._lease).get("result", {})
                if not int(kept.get("TTL", 0)) and not self._gone.is_set():
                    self.announce(seat)

    def _look(self, changed: Callable[[], object]) -> None:
        """A watch that breaks, or hears nothing for long, is made again; what happened meanwhile is a change too."""
        while not self._gone.is_set():
            try:
                stream = self._stream = self._gateway.stream("watch", create_request=self._everything)
            except NetworkError:
                self._gone.wait(_PAUSE)
                continue
            while not self._gone.is_set() and stream.line() is not None:
                changed()
            stream.end()


def _text(key: str) -> str:
    return b64encode(key.encode()).decode()


def _bytes(value: bytes) -> str:
    return b64encode(value).decode()


def _range(prefix: str) -> dict[str, str]:
    """All keys that begin with ``prefix``, which ends in ASCII."""
    return {"key": _text(prefix), "range_end": _text(prefix[:-1] + chr(ord(prefix[-1]) + 1))}
