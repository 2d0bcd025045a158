"""Making connections: listen, dial, prove; one connection a pair, made when an exchange first needs it.

Dialling and proving block, so each happens in a short-lived thread; the finished socket is handed to the loop. Either
side may dial. When both do at once the lower uid's attempt stands: after the proof the listener answers one byte,
keep or crossed. Off this machine everything goes through TLS; an address is only believed once its owner has proven
the secret and the uid.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable

from stretto.core import Member
from stretto.errors import NetworkError, PeerLost, Refused, UsageError
from stretto.links.addresses import is_here, split
from stretto.links.handshake import ANYONE, Claim, Handshake, Purpose, prove
from stretto.links.loop import Loop
from stretto.links.tls import Certificate

_KEEP, _CROSSED = b"+", b"-"
_UNIX = "unix:"
_ROUNDS = 4
_PATIENCE = 3.0
_MOST_STRANGERS = 64
_TCP_NOTSENT_LOWAT = 25
_UNSENT = 256 << 10
"""Bytes that the kernel takes ahead of what it sends: what lies there cannot be taken back when an epoch ends."""


def listen_tcp(host: str = "", port: int = 0) -> socket.socket:
    """A listening TCP socket on every interface, or on ``host``.

    Raises:
        UsageError: the port is taken.
    """
    try:
        if not host and socket.has_dualstack_ipv6():
            return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
        return socket.create_server((host, port), backlog=256)
    except OSError as e:
        raise UsageError(f"cannot listen on {host or '*'}:{port}: {e.strerror}; choose another port") from e


def listen_unix() -> tuple[socket.socket, str]:
    """A listening Unix socket without a file (an abstract name), and its address."""
    sock = socket.socket(socket.AF_UNIX)
    name = f"stretto-{os.getpid()}-{os.urandom(6).hex()}"
    sock.bind("\0" + name)
    sock.listen(256)
    return sock, _UNIX + name


def keep_alive(sock: socket.socket) -> None:
    """Send at once, and let the kernel notice within seconds that the machine at the other end is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 7000)


class Switchboard:
    """Dials and answers for one agent. Peers are known by their uids.

    ``adopt(uid, socket)`` and ``lose(uid, why)`` are called in the loop's thread.
    """

    def __init__(
        self,
        loop: Loop,
        me: Member,
        members: tuple[Member, ...],
        secret: str,
        certificate: Certificate,
        *,
        unix: bool,
        adopt: Callable[[int, socket.socket], None],
        lose: Callable[[int, str], None],
    ) -> None:
        self._loop, self._me = loop, me
        self._members = {m.uid: m for m in members}
        self._secret, self._certificate, self._unix = secret, certificate, unix
        self._adopt, self._lose = adopt, lose
        self._lock = threading.Lock()
        self._state: dict[int, str] = {}
        self._strangers = threading.BoundedSemaphore(_MOST_STRANGERS)
        self._open = True

    def answer(self, listener: socket.socket) -> None:
        """Accept on ``listener`` from now on."""
        listener.setblocking(False)

        def ready(_: int) -> None:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if not self._strangers.acquire(blocking=False):
                sock.close()
                return
            threading.Thread(target=self._welcome, args=(sock,), daemon=True).start()

        self._loop.watch(listener.fileno(), select.EPOLLIN, ready)

    def enter(self, members: tuple[Member, ...]) -> None:
        """These are the others from now on."""
        with self._lock:
            self._members = {m.uid: m for m in members}

    def parted(self, peer: int) -> None:
        """The connection to ``peer`` has ended: it may be made again."""
        with self._lock:
            self._state.pop(peer, None)

    def dial(self, peer: int) -> None:
        """Begin to connect to ``peer``, unless it is connecting to us already."""
        with self._lock:
            if peer in self._state:
                return
            self._state[peer] = "dialling"
        threading.Thread(target=self._reach, args=(peer,), daemon=True).start()

    def close(self) -> None:
        """Hand no more connections over; those that are being made are dropped."""
        with self._lock:
            self._open = False

    def _welcome(self, raw: socket.socket) -> None:
        sock = raw
        try:
            raw.setblocking(True)
            if raw.family != socket.AF_UNIX and not is_here(raw.getpeername()[0]):
                raw.settimeout(_PATIENCE)
                sock = self._certificate.answer(raw)
            who = "a caller" if sock.family == socket.AF_UNIX else f"the caller from {sock.getpeername()[0]}"
            peer = prove(sock, self._handshake(ANYONE, sock, dials=False, who=who)).rank
            with self._lock:
                keep = self._state.get(peer) is None or (self._state[peer] == "dialling" and peer < self._me.uid)
                if keep:
                    self._state[peer] = "answered"
            sock.settimeout(_PATIENCE)
            if keep:
                self._keep(peer, sock)
            else:
                sock.sendall(_CROSSED)
                sock.close()
        except (OSError, NetworkError):
            sock.close()
        finally:
            self._strangers.release()

    def _keep(self, peer: int, sock: socket.socket) -> None:
        try:
            sock.sendall(_KEEP)
        except OSError:
            with self._lock:
                self._state.pop(peer, None)  # it may call again
            raise
        self._hand_over(peer, sock)

    def _reach(self, peer: int) -> None:
        reasons: list[str] = []
        for attempt in range(_ROUNDS):
            if attempt:
                time.sleep(0.1 * 4**attempt)
            reasons = []
            for address in self._addresses(peer):
                if not self._open or self._state.get(peer) != "dialling":
                    return
                try:
                    sock = self._connect(address)
                    if self._introduce(peer, sock, address):
                        return
                    reasons.append(f"{address}: it takes us for connected, and has not noticed that we are not")
                    break
                except (OSError, NetworkError) as e:
                    reasons.append(f"{address}: {e}")
        with self._lock:
            if self._open and self._state.get(peer) == "dialling":
                self._loop.call(lambda: self._lose(peer, "no address of its answers: " + "; ".join(reasons)))

    def _introduce(self, peer: int, sock: socket.socket, address: str) -> bool:
        """Whether it keeps this connection: else it should be about to reach us, as long as nothing went wrong."""
        try:
            if sock.family != socket.AF_UNIX and not is_here(split(address)[0]):
                sock = self._certificate.dial(sock)
            prove(sock, self._handshake(peer, sock, dials=True, who=f"the agent at {address}"))
            sock.settimeout(None)
            verdict = sock.recv(1)
            if not verdict:
                raise PeerLost(f"the agent at {address} hung up")
        except BaseException:
            sock.close()
            raise
        if verdict == _KEEP:
            with self._lock:
                self._state[peer] = "connected"
            self._hand_over(peer, sock)
        else:
            sock.close()
        return verdict == _KEEP

    def _hand_over(self, peer: int, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX:
            keep_alive(sock)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT)
        with self._lock:
            if self._open:
                self._loop.call(lambda: self._adopt(peer, sock))
            else:
                sock.close()

    def _handshake(self, peer: int, sock: socket.socket, *, dials: bool, who: str) -> Handshake:
        claim = Claim(Purpose.LINK, 0, self._me.uid, peer)
        return Handshake(self._secret, claim, dials=dials, binding=self._certificate.binding(sock), who=who)

    def _addresses(self, peer: int) -> list[str]:
        """Where to try: the Unix address, or on one host loopback first, else everything but loopback."""
        member = self._members.get(peer)
        if member is None:
            return []
        if self._unix:
            return [a for a in member.addresses if a.startswith(_UNIX)]
        tcp = [a for a in member.addresses if not a.startswith((_UNIX, "memory:"))]
        local = member.host == self._me.host
        loopback = [a for a in tcp if split(a)[0] in ("127.0.0.1", "::1")]
        others = [a for a in tcp if a not in loopback]
        return loopback + others if local else others

    def _connect(self, address: str) -> socket.socket:
        if address.startswith(_UNIX):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect("\0" + address.removeprefix(_UNIX))
            return sock
        try:
            return socket.create_connection(split(address), timeout=_PATIENCE)
        except TimeoutError as e:
            raise Refused(f"no answer in {_PATIENCE:g} s") from e
