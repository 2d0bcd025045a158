"""The laboratory's switch, ``switch.c``: compiled once, started, and told what to do through its control address."""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stretto.errors import UsageError
from stretto.lab.quantities import Line

_SOURCE: Final = Path(__file__).with_name("switch.c")
_ALLOWED: Final = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_ANSWERS: Final = 1 << 16
_PATIENCE: Final = 5.0
EVERY: Final = -1
"""Instead of a host's number: all of them."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What passed a host's link: bytes with their IP headers; packets dropped by a full queue, and lost or cut off."""

    sent: int
    received: int
    dropped: int
    lost: int


class Switch:
    """A running switch, found by its name: any process of its user can tell it what to do.

    Raises:
        UsageError: none of that name is running.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        pid, hosts, self.subnet = self._ask("about").split()
        self.pid, self.hosts = int(pid), int(hosts)

    def set(self, host: int, line: Line) -> None:
        """Change a host's link, or with ``EVERY`` all of them, while programs run."""
        self._check(host)
        values = (line.rate, line.delay, line.loss, line.queue)
        self._ask(f"set {host} " + " ".join("-1" if v is None else f"{v:.12g}" for v in values))

    def cut(self, host: int, other: int = EVERY, *, yes: bool = True) -> None:
        """Pull a host's cable, or only what leads to one other; ``yes=False`` puts it back."""
        self._check(host)
        self._check(other)
        self._ask(f"cut {host} {other} {int(yes)}")

    def stats(self) -> list[Counts]:
        return [Counts(*map(int, row.split())) for row in self._ask("stats").splitlines()]

    def address(self, host: int) -> str:
        self._check(host)
        return f"{self.subnet}.{host + 1}"

    def inside(self, host: int, command: Sequence[str]) -> list[str]:
        """The command that runs ``command`` on a host."""
        self._check(host)
        return [str(program()), "enter", str(self.pid), str(host), *command]

    def stop(self) -> None:
        """End it, and every process that runs on its hosts; returns when all is gone."""
        ended = os.pidfd_open(self.pid)
        try:
            self._ask("stop")
            select.select([ended], [], [], _PATIENCE)
        finally:
            os.close(ended)

    def _check(self, host: int) -> None:
        if not EVERY <= host < self.hosts:
            raise UsageError(f"there is no host {host} in the laboratory {self.name}; it has 0 to {self.hosts - 1}")

    def _ask(self, text: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mine:
            mine.bind("")  # Linux gives it an abstract address of its own, where the answer goes
            mine.settimeout(_PATIENCE)
            try:
                mine.connect(f"\0stretto-lab-{self.name}")
                mine.send(text.encode())
                return mine.recv(_ANSWERS).decode()
            except ConnectionRefusedError:
                raise UsageError(f"no laboratory named {self.name!r} is up; begin with: stretto lab up") from None
            except TimeoutError:
                raise UsageError(
                    f"the laboratory {self.name!r} does not answer; it belongs to another user, or is stopped"
                ) from None


def serve(name: str, hosts: int, subnet: str, *, owned: bool, congestion: str | None) -> subprocess.Popen[bytes]:
    """Start a switch and wait until its hosts are there. An owned one ends with this process, however that ends.

    Raises:
        UsageError: it cannot be had here (and why), or another one has this name.
    """
    if os.geteuid() != 0:
        raise UsageError("a laboratory makes network namespaces, and that needs root; run it with sudo")
    owner = str(os.getpid() if owned else 0)
    process = subprocess.Popen(
        [program(), "serve", name, str(hosts), subnet, owner, congestion or ""],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        if process.stdout.readline() == b"ready\n":
            return process
        said = process.stderr.read().decode().strip()
    process.wait()
    raise UsageError(_refusal(name, said, congestion))


def _refusal(name: str, said: str, congestion: str | None) -> str:
    if said.startswith("name:"):
        return f"a laboratory named {name!r} is up already; end it with: stretto lab down --name {name}"
    if said.startswith("/dev/net/tun"):
        return f"{said}; load the kernel's tun module (modprobe tun), or give the container this device"
    if said.startswith("unshare"):
        return f"no network namespace can be made ({said}); run it with CAP_SYS_ADMIN, outside a restricted container"
    if congestion and said.startswith(f"{congestion}:"):
        allowed = _ALLOWED.read_text(encoding="ascii").strip()
        return (
            f"hosts may not use the congestion control {congestion}; name one of: {allowed}, or allow it in {_ALLOWED}"
        )
    return f"the laboratory's switch ended: {said}"


def program(cache: Path | None = None) -> Path:
    """The compiled switch, from the cache (``~/.cache/stretto``); compiled first where it is not there yet.

    Raises:
        UsageError: there is no C compiler, or the source does not compile.
    """
    source = _SOURCE.read_bytes()
    folder = (cache or Path.home() / ".cache" / "stretto") / "lab"
    path = folder / f"switch-{hashlib.sha256(source).hexdigest()[:16]}"
    if not path.exists():
        _compile(folder, path)
    return path


def _compile(folder: Path, path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UsageError("a laboratory compiles its switch, and there is no C compiler; install one: apt install gcc")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        out = Path(draft, "switch")
        done = subprocess.run(
            [compiler, "-O2", "-o", out, _SOURCE], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise UsageError(f"{compiler} cannot compile {_SOURCE}: {done.stderr.strip()[:2000]}")
        out.replace(path)
