"""What a store of views can do, whichever it is, and how one is named: ``zk://host:2181/path``, ``etcd://host:2379/path``."""

from __future__ import annotations

import hmac
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import msgspec

from stretto.errors import ProtocolError, Refused, UnknownName, UsageError
from stretto.links.addresses import split
from stretto.membership.messages import LONGEST, Seat, View

PATIENCE: Final = 10.0
"""Seconds to wait for a store that does not answer: it may be electing a leader of its own."""
LIFETIME: Final = 5.0
"""Seconds after which a process that says nothing to the store is gone; servers may have a higher least value."""
SCHEMES: Final = {"zk": "zookeeper", "etcd": "etcd"}
"""Schemes, and the module of each; kazoo, which speaks to ZooKeeper, is the optional extra of the same name."""

_Value = TypeVar("_Value", View, Seat)


class Store(Protocol):
    """One run's part of a store. Made after a fork, not before: it has threads.

    Every method blocks, and raises ``NetworkError`` when the store does not answer within :data:`PATIENCE`, and
    ``Refused`` where something is stored that was not written with this run's secret.
    """

    def latest(self) -> View | None:
        """The view that stands; None before the first."""

    def decide(self, view: View) -> View:
        """Have ``view`` stand if view ``view.number - 1`` does; the view that stands now, ours or another's."""

    def announce(self, seat: Seat) -> None:
        """Say that we are here, until :meth:`close` or our end; once in a life."""

    def present(self) -> tuple[Seat, ...]:
        """Those that are here, who announced themselves first first."""

    def watch(self, changed: Callable[[], object]) -> None:
        """From now on call ``changed()``, in a thread of the store's, whenever one of the above may have changed."""

    def forget(self) -> None:
        """Let no view stand: for the coordinator of a new run, where nobody of the last one is here any more."""

    def close(self) -> None:
        """Be here no more, at once."""


@dataclass(frozen=True, slots=True)
class Place:
    """A store's address: its servers, tried in turn, and the run's path."""

    scheme: str
    servers: tuple[tuple[str, int], ...]
    path: str


def parse(address: str) -> Place:
    """The place that ``scheme://host:port,host:port/path`` names.

    >>> parse("zk://a:2181,b:2181/runs/7")
    Place(scheme='zk', servers=(('a', 2181), ('b', 2181)), path='/runs/7')

    Raises:
        UnknownName: another scheme.
        UsageError: no server, or no path.
    """
    scheme, _, rest = address.partition("://")
    if scheme not in SCHEMES:
        raise UnknownName("store", scheme, SCHEMES)
    servers, _, path = rest.partition("/")
    names = [name for name in path.split("/") if name]
    if not servers or not names:
        raise UsageError(f"{address!r} names no place; write {scheme}://host:port/path, a path for each run")
    return Place(scheme, tuple(split(server) for server in servers.split(",")), "/" + "/".join(names))


def open_store(address: str, secret: str) -> Store:
    """The store at ``address``.

    Raises:
        UsageError: the address is none, or the library that speaks to this store is not installed.
        NetworkError: it does not answer.
    """
    place = parse(address)
    extra = SCHEMES[place.scheme]
    try:
        module = importlib.import_module(f"stretto.membership.stores.{extra}")
    except ImportError as e:
        raise UsageError(f"{place.scheme}:// needs {e.name}; install it with: pip install 'stretto[{extra}]'") from e
    store: Store = module.connect(place, Seal(secret, place))
    return store


class Seal:
    """Values of one run at one place, as bytes with a proof (HMAC-SHA256) of the run's secret before them."""

    def __init__(self, secret: str, place: Place) -> None:
        self._key = hmac.digest(b"stretto store", secret.encode(), "sha256")
        self._place = place

    def close(self, value: View | Seat) -> bytes:
        """The bytes of ``value``."""
        body = msgspec.msgpack.encode(value)
        return self._proof(type(value), body) + body

    def open(self, kind: type[_Value], data: bytes) -> _Value:
        """The value of sealed bytes.

        Raises:
            Refused: they were sealed with another secret, for another place, or as another kind of value.
            ProtocolError: they were not, and are no value of ours.
        """
        proof, body = data[:32], data[32:]
        if not hmac.compare_digest(proof, self._proof(kind, body)):
            raise Refused(
                f"a {kind.__name__.lower()} at {self._place.path} was written with another secret, or by others; "
                "choose another path, or give all the same STRETTO_SECRET"
            )
        if len(body) > LONGEST:
            raise ProtocolError(f"a {kind.__name__.lower()} of {len(body)} bytes is stored; the longest is {LONGEST}")
        try:
            return msgspec.msgpack.decode(body, type=kind)
        except msgspec.MsgspecError as e:
            raise ProtocolError(f"what is stored at {self._place.path} is no {kind.__name__.lower()}: {e}") from e

    def _proof(self, kind: type[View] | type[Seat], body: bytes) -> bytes:
        text = b"%b\0%b\0%b" % (kind.__name__.encode(), self._place.path.encode(), body)
        return hmac.digest(self._key, text, "sha256")
