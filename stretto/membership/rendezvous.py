"""The embedded coordinator: one thread, one poll loop; agents prove the secret, come, and are told who else is there.

Theory of operation. Every accepted socket is a :class:`~stretto.membership.connection.Connection` that climbs from
stranger to member. Strangers are bounded: at most :data:`MOST_STRANGERS` unproven connections at a time, each with a
few hundred bytes of memory and ten seconds, or one second when others queue; the rest wait in the kernel's backlog.
What members hear is decided by :class:`~stretto.membership.roll.Roll`, without any I/O.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Final, Self

from stretto.core import Network
from stretto.errors import NetworkError, ProtocolError, Refused, UsageError
from stretto.links import addresses as places
from stretto.links.handshake import DEADLINE
from stretto.links.tls import make_certificate
from stretto.membership.connection import HURRY, Connection, Ended
from stretto.membership.messages import Denied, Join, Leave, Message
from stretto.membership.roll import UNKNOWN, Roll, Say

MOST_STRANGERS: Final = 128
_TICK: Final = 0.5
_REMIND: Final = 5.0
_BACKLOG: Final = 1024
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Coordinator:
    """Calls an epoch of ``size`` agents together, and tells them when one is gone. A context manager.

    Args:
        size: how many agents there will be.
        secret: what they prove.
        host: where to listen; empty for every interface.
        port: 0 for any that is free.
        network: what is known of the network between them; every agent is told the same.
        say: told, in words, who was refused or denied, and why; called in the coordinator's thread.

    Raises:
        UsageError: the port is in use, or the address is not this machine's.
    """

    def __init__(
        self,
        size: int,
        secret: str,
        host: str = "",
        port: int = 0,
        *,
        network: Network = UNKNOWN,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if size < 1:
            raise UsageError(f"{size} agents cannot train; there must be at least 1")
        if not secret:
            raise UsageError("the secret is empty; give the coordinator and every agent the same long random one")
        self._secret = secret
        self._say = say
        self._roll = Roll(size, network)
        self._lock = threading.Lock()  # over the roll: it is asked from other threads
        self._listener = _listen(host, port)
        self.address = places.join(host or places.candidates()[0], self._listener.getsockname()[1])
        self._certificate = cache(make_certificate)
        self._connections: dict[int, Connection] = {}
        self._strangers: dict[int, Connection] = {}
        self._accepted = 0
        self._accepting = False
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="stretto-coordinator", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """End the thread and every connection. Whoever still waits hears of it at once. May be called again."""
        if self._stopping:
            return
        self._stopping = True
        self._wake.send(b"\0")
        if self._thread.ident is not None:
            self._thread.join()
        for thing in (self._listener, self._wake, self._woken, self._selector):
            thing.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def waiting_for(self) -> tuple[int, ...]:
        """Ranks that have not come yet; none once the epoch has begun."""
        with self._lock:
            return self._roll.missing()

    def present(self) -> int:
        """Agents that are here now."""
        with self._lock:
            return self._roll.present()

    def _run(self) -> None:
        try:
            self._poll()
        finally:
            for connection in self._connections.values():
                connection.shut()

    def _poll(self) -> None:
        self._selector.register(self._woken, selectors.EVENT_READ)
        remind_at = time.monotonic() + _REMIND
        while not self._stopping:
            self._accept_while_there_is_room()
            for ready, events in self._selector.select(_TICK):
                if ready.fileobj is self._listener:
                    self._accept()
                elif ready.data in self._connections:
                    self._serve(self._connections[ready.data], events)
            self._end_the_slow()
            if time.monotonic() > remind_at:
                remind_at = time.monotonic() + _REMIND
                with self._lock:
                    reminders = self._roll.remind()
                self._tell(reminders)

    def _accept_while_there_is_room(self) -> None:
        room = len(self._strangers) < MOST_STRANGERS
        if room and not self._accepting:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif self._accepting and not room:
            self._selector.unregister(self._listener)
        self._accepting = room

    def _accept(self) -> None:
        try:
            sock, peer = self._listener.accept()
            c = Connection(self._accepted, sock, peer[:2], self._secret, self._certificate)
        except OSError as e:
            if e.errno in _FULL:
                time.sleep(_TICK)  # they stay in the backlog until descriptors are free again
            return
        self._accepted += 1
        self._connections[c.key] = self._strangers[c.key] = c
        self._selector.register(sock, selectors.EVENT_READ, c.key)

    def _end_the_slow(self) -> None:
        hurry = DEADLINE - HURRY if len(self._strangers) >= MOST_STRANGERS else 0.0
        now = time.monotonic() + hurry
        for c in list(self._strangers.values()):
            if now > c.deadline:
                self._end(c, f"it did not prove the secret and join within {DEADLINE - hurry:g} s")

    def _serve(self, c: Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                c.flush()
            for message in c.read():
                self._hear(c, message)
            self._watch(c)
        except Refused as e:
            self._say(f"refused {c.called}: {e}")
            self._say_goodbye(c)
        except Ended:
            self._end(c, "its connection was closed")
        except NetworkError as e:
            self._end(c, str(e))
        except OSError as e:
            self._end(c, f"its connection broke ({e.strerror or e})")

    def _hear(self, c: Connection, message: Message) -> None:
        match message:
            case Join() if not c.member and not c.leaving:
                with self._lock:
                    answers = self._roll.join(c.key, c.rank, message)
                c.member = True
                del self._strangers[c.key]
                self._tell(answers)
            case Leave() if c.member:
                with self._lock:
                    farewells = self._roll.leave(c.key)
                self._drop(c)
                self._tell(farewells)
            case _:
                raise ProtocolError(f"it sent a {type(message).__name__} out of turn")

    def _tell(self, what: Say) -> None:
        for key, message in what:
            c = self._connections.get(key)
            if c is None:
                continue
            try:
                c.send(message)
                self._watch(c)
            except (OSError, ProtocolError) as e:
                self._end(c, str(e))
                continue
            if isinstance(message, Denied):
                self._say(f"denied {c.called}: {message.why}")
                self._say_goodbye(c)

    def _watch(self, c: Connection) -> None:
        if c.key in self._connections:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if c.wants_write else 0)
            self._selector.modify(c.sock, events, c.key)

    def _say_goodbye(self, c: Connection) -> None:
        try:
            c.say_goodbye()
            self._strangers[c.key] = c
        except (OSError, NetworkError):
            self._drop(c)

    def _end(self, c: Connection, why: str) -> None:
        if not c.leaving and not c.member:
            self._say(f"refused {c.called}: {why}")
        self._drop(c)
        with self._lock:
            obituaries = self._roll.lose(c.key, why)
        self._tell(obituaries)

    def _drop(self, c: Connection) -> None:
        self._strangers.pop(c.key, None)
        if self._connections.pop(c.key, None) is not None:
            self._selector.unregister(c.sock)
            c.shut()


def _listen(host: str, port: int) -> socket.socket:
    try:
        if host:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        elif socket.has_dualstack_ipv6():
            listener = socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        else:
            listener = socket.create_server(("", port), backlog=_BACKLOG)
    except OSError as e:
        raise UsageError(_cannot_listen(e, host, port)) from e
    listener.setblocking(False)
    return listener


def _cannot_listen(e: OSError, host: str, port: int) -> str:
    where = places.join(host, port) if host else f"port {port} of every interface"
    if e.errno == errno.EADDRINUSE:
        return f"port {port} is in use on {where}; see who has it (`ss -ltnp sport = :{port}`), or choose another port"
    if e.errno == errno.EADDRNOTAVAIL:
        return (
            f"{host} is not an address of this machine, which has {', '.join(places.candidates())}; choose one of these"
        )
    return f"cannot listen on {where}: {e.strerror or e}; choose another address or port"
