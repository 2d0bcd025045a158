"""etcd's gateway: JSON over HTTP, each request to the first server that answers, and streams of answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from typing import Any, Final

from stretto.errors import NetworkError, ProtocolError
from stretto.links.addresses import join
from stretto.membership.stores.store import LIFETIME, PATIENCE

_PAUSE: Final = 0.1
_LONGEST: Final = 1 << 26
_UNAVAILABLE: Final = (500, 502, 503, 504)


class Gateway:
    """The servers of one etcd."""

    def __init__(self, servers: tuple[tuple[str, int], ...]) -> None:
        self._servers = servers

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """The answer to ``POST /v3/WHAT``; asked again, of the next server, where none comes.

        Raises:
            NetworkError: none comes for too long, or etcd refuses.
        """
        ends, why = time.monotonic() + PATIENCE, "no server is named"
        while True:
            for server in self._servers:
                left = ends - time.monotonic()
                if left <= 0:
                    raise NetworkError(f"etcd has not answered at {self._where} for {PATIENCE:g} s ({why})")
                try:
                    stream = Stream(server, what, request, left)
                    try:
                        return stream.answer()
                    finally:
                        stream.end()
                except _Broken as e:
                    why = str(e)
            time.sleep(_PAUSE)

    def stream(self, what: str, **request: Any) -> Stream:
        """Answers that keep coming; of the first server that gives any.

        Raises:
            NetworkError: none does.
        """
        why = ""
        for server in self._servers:
            try:
                return Stream(server, what, request, LIFETIME)
            except _Broken as e:
                why = str(e)
        raise NetworkError(f"etcd does not answer at {self._where} ({why})")

    @property
    def _where(self) -> str:
        return ",".join(join(*server) for server in self._servers)


class Stream:
    """One request to one server, and its answer in one piece or line by line."""

    def __init__(self, server: tuple[str, int], what: str, request: dict[str, Any], patience: float) -> None:
        self._connection = http.client.HTTPConnection(*server, timeout=patience)
        try:
            self._connection.request("POST", f"/v3/{what}", json.dumps(request))
            self._sock = self._connection.sock
            self._response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as e:
            self._connection.close()
            raise _Broken(f"{join(*server)}: {e}") from e
        if self._response.status in _UNAVAILABLE:
            self._connection.close()
            raise _Broken(f"{join(*server)}: {self._response.status} {self._response.reason}")

    def answer(self) -> dict[str, Any]:
        """All of it."""
        try:
            data = self._response.read(_LONGEST)
        except (OSError, http.client.HTTPException) as e:
            raise _Broken(str(e)) from e
        finally:
            self._response.close()
        answer = _parsed(data)
        if self._response.status != http.client.OK:
            raise NetworkError(f"etcd refuses: {answer.get('error', self._response.reason)}")
        return answer

    def line(self) -> dict[str, Any] | None:
        """The next of many; None at the end, or when none comes for long."""
        try:
            data = self._response.readline(_LONGEST)
        except (OSError, ValueError, http.client.HTTPException):
            data = b""
        if data:
            return _parsed(data)
        self._response.close()
        return None

    def end(self) -> None:
        """Also from another thread, in the middle of :meth:`line`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class _Broken(NetworkError):
    """This server does not answer; another may."""


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except ValueError as e:
        raise ProtocolError(f"what answers is no etcd: {data[:60]!r}") from e
    if not isinstance(answer, dict):
        raise ProtocolError(f"what answers is no etcd: {data[:60]!r}")
    return answer
