"""A laboratory: hosts on one machine, and a network of the rate, delay and loss you choose, to run real programs in.

    with Laboratory(hosts=4, rate="100mbit", delay="5ms") as lab:
        server = lab.start(0, ["python", "serve.py", lab.address(0)])
        lab.cut(0)

At its end, and when the process that made it is killed, every process on its hosts is killed and nothing is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from stretto.lab import switch
from stretto.lab.quantities import line
from stretto.lab.switch import EVERY, Counts, Switch

_NAMESPACES: Final = 200
"""The switch's descriptor of host 0's namespace; the others follow."""


class Laboratory:
    """A network of our own, from here to the end of the ``with``.

    Args:
        hosts: 2 to 64 of them.
        rate, delay, loss, queue: of every host's link, as texts (``100mbit``, ``5ms``, ``0.5%``, ``1MiB``). The delay
            is one way between two hosts, the loss for each of the two links that a packet takes.
        congestion: TCP's congestion control on every host; without it the machine's default.

    Raises:
        UsageError: a text cannot be read; we are not root; or the machine lacks what it takes.
    """

    def __init__(
        self,
        hosts: int = 4,
        *,
        rate: str = "1gbit",
        delay: str = "100us",
        loss: str = "0",
        queue: str = "1MiB",
        congestion: str | None = None,
    ) -> None:
        wanted = line(rate=rate, delay=delay, loss=loss, queue=queue)
        name = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._programs: list[subprocess.Popen[Any]] = []
        self._process = switch.serve(name, hosts, subnet_of(os.getpid()), owned=True, congestion=congestion)
        try:
            self._switch = Switch(name)
            self._switch.set(EVERY, wanted)
        except BaseException:
            self.close()
            raise

    @property
    def hosts(self) -> int:
        return self._switch.hosts

    def set(self, host: int = EVERY, **changes: str) -> None:
        """Change a host's link, or all: any of ``rate``, ``delay``, ``loss`` and ``queue``."""
        self._switch.set(host, line(**changes))

    def cut(self, host: int, other: int = EVERY) -> None:
        """Silence in both directions, as with a pulled cable; given another host, only between the two."""
        self._switch.cut(host, other)

    def heal(self, host: int, other: int = EVERY) -> None:
        self._switch.cut(host, other, yes=False)

    def stats(self) -> list[Counts]:
        return self._switch.stats()

    def address(self, host: int) -> str:
        return self._switch.address(host)

    def start(self, host: int, command: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
        """Run a program on a host; ``popen`` goes to :class:`subprocess.Popen`."""
        program = subprocess.Popen(self._switch.inside(host, command), **popen)
        self._programs.append(program)
        return program

    def processes(self, host: int) -> list[int]:
        """The process ids of all that runs on a host, in no order."""
        network = os.stat(f"/proc/{self._switch.pid}/fd/{_NAMESPACES + host}")
        return [pid for pid in _pids() if _in(pid, network)]

    def close(self) -> None:
        """Kill what runs on the hosts, and take the network down. Again: nothing."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        for program in self._programs:  # the switch has killed them, unless it was killed itself
            program.kill()
            program.wait()
        self._programs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def subnet_of(pid: int) -> str:
    """Networks of different processes have different addresses, so that logs tell them apart.

    >>> subnet_of(4660)
    '10.82.52'
    """
    return f"10.{64 + (pid >> 8) % 128}.{pid % 256}"


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _in(pid: int, network: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        found = os.stat(Path("/proc", str(pid), "ns/net"))
        return (found.st_dev, found.st_ino) == (network.st_dev, network.st_ino)
    return False
