"""The coordinator as a process of its own: whoever starts it may be killed, and so may it, without the other.

Theory of operation. Starter and process share a socket pair, the lifeline. Over it goes the :class:`Call` (the secret
must be on no command line), and back comes the :class:`Answer`: where it listens, or why it cannot. From then on only
the end of the lifeline matters. Closed after :data:`DONE`, it says that the run is over for the starter, and the
coordinator stays for those who are still here. Closed without a word, it says that the starter was killed, and the
coordinator stays as long as agents are here, or come back within a moment (``coordination.py``).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from stretto.errors import StrettoError, UsageError

DONE: Final = b"done\n"
PATIENCE: Final = 8.0
"""Seconds that the coordinator of an earlier attempt at the same port may take to end."""
_DETACHED: Final = '"$@" &'


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What a :class:`stretto.membership.Coordinator` is made of; ``size`` counts agents.

    ``patience``: seconds to wait for the port; ``store``: the address of the store that decides on views, if one does.
    """

    size: int
    secret: str
    host: str
    port: int
    servers: int = 0
    min_agents: int | None = None
    patience: float = 0.0
    store: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Where the coordinator listens, or why it cannot."""

    address: str = ""
    refused: str = ""


class Lifeline:
    """The starter's end. A context manager; its end lets the coordinator end once nobody needs it any more."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self.address = ""

    @property
    def theirs(self) -> int:
        """The descriptor that the process is to inherit."""
        return self._theirs.fileno()

    def command(self) -> Sequence[str]:
        return [sys.executable, "-P", "-m", "stretto.launch.coordination", str(self.theirs)]

    def begin(self, call: Call) -> str:
        """Tell the process, once it was started, what to coordinate; its address.

        Raises:
            UsageError: the port is in use, or the address is not this machine's.
        """
        self._theirs.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._ours.sendall(msgspec.json.encode(call) + b"\n")
        line = read_line(self._ours)
        if not line:
            raise StrettoError("the coordinator's process ended before it listened; see above what it said")
        answer = msgspec.json.decode(line, type=Answer)
        if answer.refused:
            raise UsageError(answer.refused)
        self.address = answer.address
        return self.address

    def dismiss(self) -> None:
        """The run is over for us; the coordinator stays for those who are still here. May be called again."""
        if self._ours.fileno() >= 0:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._ours.sendall(DONE)
        self.close()

    def close(self) -> None:
        """Go without a word, as if killed."""
        self._ours.close()
        self._theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.dismiss()
        else:
            self.close()


def start_coordinator(
    size: int,
    secret: str,
    host: str = "",
    port: int = 0,
    *,
    servers: int = 0,
    min_agents: int | None = None,
    patience: float = PATIENCE,
) -> Lifeline:
    """Start a coordinator that outlives this process, for agents that no launcher of ours started; see ``Call``.

    It is no child of ours, shares our standard error, and listens when this returns. The caller keeps the lifeline:
    ``dismiss()`` when it has left the run, ``close()`` when it has failed.

    Raises:
        UsageError: the port is in use, for longer than ``patience`` seconds, or the address is not this machine's.
    """
    lifeline = Lifeline()
    try:
        subprocess.run(
            ["/bin/sh", "-c", _DETACHED, "sh", *lifeline.command()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=import_path(os.environ),
            start_new_session=True,
            pass_fds=(lifeline.theirs,),
            check=True,
        )
        lifeline.begin(
            Call(
                size=size,
                secret=secret,
                host=host,
                port=port,
                servers=servers,
                min_agents=min_agents,
                patience=patience,
            )
        )
    except BaseException:
        lifeline.close()
        raise
    return lifeline


def import_path(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for a process that finds the modules that we find."""
    return dict(environ) | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def read_line(sock: socket.socket) -> bytes:
    """Up to the first line break, which is not followed by anything yet; empty if the end comes first."""
    data = b""
    while not data.endswith(b"\n"):
        try:
            more = sock.recv(1 << 16)
        except ConnectionResetError:
            more = b""
        if not more:
            return b""
        data += more
    return data
