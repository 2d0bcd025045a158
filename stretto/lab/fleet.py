"""Agents of one run on the hosts of a laboratory: a launcher on each host, and where to find whom it started.

Whoever runs is found from outside, as a person would: by the host, the process group that a launcher gives each agent,
and the label in its environment; the coordinator by the port it listens at.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from stretto.errors import ScriptFailed
from stretto.lab import host as hosts
from stretto.lab.laboratory import Laboratory

PORT: Final = 29400
_LISTENS: Final = "0A"
"""TCP_LISTEN in ``/proc/net/tcp``."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Life:
    """An agent's trainer process, and when it began (monotonic seconds)."""

    label: int
    pid: int
    began: float


class Fleet:
    """``per_host`` agents of ``command`` on every host.

    Args:
        folder: takes the cluster file, its secret, and what launchers and agents print (``host-N.log``).
        environ: beside our own environment.
    """

    def __init__(
        self,
        lab: Laboratory,
        command: Sequence[str],
        folder: Path,
        *,
        per_host: int = 1,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.lab, self.folder = lab, folder
        self.labels = [tuple(range(h * per_host, (h + 1) * per_host)) for h in range(lab.hosts)]
        cluster = _describe(lab, folder, per_host)
        env = dict(os.environ) | dict(environ or {})
        self.launchers = [self._launch(h, hosts.command(cluster, f"host{h}", command), env) for h in range(lab.hosts)]

    @property
    def agents(self) -> int:
        return sum(len(labels) for labels in self.labels)

    def host_of(self, label: int) -> int:
        return next(h for h, labels in enumerate(self.labels) if label in labels)

    def lives(self, labels: Iterable[int] | None = None) -> list[Life]:
        """The processes of these agents that run now, or of all."""
        wanted = set(range(self.agents) if labels is None else labels)
        found = (_life(pid) for host in {self.host_of(label) for label in wanted} for pid in self.lab.processes(host))
        return [life for life in found if life is not None and life.label in wanted]

    def coordinator(self) -> list[int]:
        """The process that listens at the coordinator's port; none where that is an agent, or a launcher."""
        others = {life.pid for life in self.lives()} | {launcher.pid for launcher in self.launchers}
        for pid in self.lab.processes(0):
            with contextlib.suppress(OSError):
                if os.getpgid(pid) not in others and _listens(pid, PORT):
                    return [pid]
        return []

    def running(self) -> bool:
        """Whether a launcher still runs.

        Raises:
            ScriptFailed: one has failed.
        """
        codes = [launcher.poll() for launcher in self.launchers]
        for host, code in enumerate(codes):
            if code:
                raise ScriptFailed(f"the training failed on host {host} (exit code {code}); {self.last_words()}")
        return None in codes

    def said(self, host: int) -> str:
        """What its launcher and agents printed."""
        return (self.folder / f"host-{host}.log").read_text(encoding="utf-8", errors="replace")

    def last_words(self) -> str:
        """The last line of each host."""
        lines = (self.said(host).strip().splitlines() or ["nothing"] for host in range(self.lab.hosts))
        return "; ".join(f"host {host} said: {said[-1][:300]}" for host, said in enumerate(lines))

    def close(self) -> None:
        """End what still runs: a launcher's end is its agents' end."""
        for launcher in self.launchers:
            launcher.terminate()
        for launcher in self.launchers:
            launcher.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _launch(self, host: int, command: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with open(self.folder / f"host-{host}.log", "wb") as log:
            return self.lab.start(
                host, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, process_group=0
            )


def _describe(lab: Laboratory, folder: Path, per_host: int) -> Path:
    """Write the cluster file, and the secret beside it."""
    secret = folder / "secret"
    secret.touch(0o600)
    secret.write_text(secrets.token_hex(16), encoding="ascii")
    lines = ['secret_file = "secret"', f"port = {PORT}"]
    for h in range(lab.hosts):
        lines += ["[[host]]", f'name = "host{h}"', f'address = "{lab.address(h)}"', f"agents = {per_host}"]
    path = folder / "cluster.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _life(pid: int) -> Life | None:
    """The agent that a process is: the leader of a group of its own, with a label in its environment."""
    with contextlib.suppress(OSError, StopIteration):
        if os.getpgid(pid) != pid:
            return None
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        label = next(entry for entry in environ if entry.startswith(b"STRETTO_RANK="))
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        if state != "Z":
            return Life(int(label.partition(b"=")[2]), pid, int(fields[18]) / _TICKS)
    return None


def _listens(pid: int, port: int) -> bool:
    rows = [line.split() for name in ("tcp", "tcp6") for line in _lines(f"/proc/{pid}/net/{name}")]
    at = {f"socket:[{row[9]}]" for row in rows if row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == port}
    return any(os.readlink(f"/proc/{pid}/fd/{fd}") in at for fd in os.listdir(f"/proc/{pid}/fd"))


def _lines(path: str) -> list[str]:
    """Without the headline; none where IPv6 is missing."""
    try:
        return Path(path).read_text(encoding="ascii").splitlines()[1:]
    except FileNotFoundError:
        return []
