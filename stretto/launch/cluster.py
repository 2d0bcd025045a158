"""``cluster.toml``: the machines of a run, how many agents each has, and where their secret lies.

secret_file = "secret"          # beside this file, readable by you alone
port = 29400                    # of the coordinator, on the first host; of its successor, on the next one

[[host]]
name = "a"
address = "10.0.0.1"
agents = 2
interface = "eth1"              # optional: the network to use
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stretto.errors import UnknownName, UsageError
from stretto.launch.secret import secret_in
from stretto.links import addresses as places

DEFAULT_PORT: Final = 29400
_KEYS = {"secret_file": str, "port": int, "host": list}
_HOST_KEYS = {"name": str, "address": str, "agents": int, "interface": str}


@dataclass(frozen=True, slots=True)
class Host:
    """One machine of the cluster; ``address`` is its IP or name, without a port."""

    name: str
    address: str
    agents: int
    interface: str | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """All machines. Ranks count through the hosts in their order; the first has the coordinator."""

    hosts: tuple[Host, ...]
    secret_file: Path
    port: int = DEFAULT_PORT

    @property
    def size(self) -> int:
        return sum(host.agents for host in self.hosts)

    @property
    def coordinators(self) -> str:
        """Where the coordinator is, and after it where its successors would be, between commas."""
        return ",".join(dict.fromkeys(places.join(host.address, self.port) for host in self.hosts))

    def host(self, name: str) -> Host:
        for host in self.hosts:
            if host.name == name:
                return host
        raise UnknownName("host", name, [host.name for host in self.hosts])

    def part(self, name: str) -> range:
        """The ranks of one host."""
        before = 0
        for host in self.hosts:
            if host.name == name:
                return range(before, before + host.agents)
            before += host.agents
        raise UnknownName("host", name, [host.name for host in self.hosts])

    def which(self) -> Host:
        """The host that this machine is, by its own addresses.

        Raises:
            UsageError: none is, or several are.
        """
        here = [host for host in self.hosts if places.is_here(host.address)]
        if len(here) == 1:
            return here[0]
        mine = ", ".join(places.candidates())
        if not here:
            raise UsageError(
                f"no host of the cluster has an address of this machine ({mine}); add it, or name the host"
            )
        names = ", ".join(host.name for host in here)
        raise UsageError(f"this machine ({mine}) could be any of the hosts {names}; say which one it is by its name")

    def secret(self) -> str:
        return secret_in(self.secret_file)


def read_cluster(path: Path) -> Cluster:
    """The cluster that a file describes.

    Raises:
        UsageError: what the file lacks, or has too much, and where.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}; give the path of a cluster.toml") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} is not TOML: {e}") from e
    _check(table, _KEYS, str(path))
    if "secret_file" not in table:
        raise UsageError(f'{path} lacks secret_file; write secret_file = "secret", the same file on every host')
    hosts = tuple(_host(entry, i, path) for i, entry in enumerate(table.get("host", []), start=1))
    if not hosts:
        raise UsageError(f"{path} has no host; write a [[host]] with name, address and agents for each machine")
    names = [host.name for host in hosts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{path} has several hosts named {name!r}; give each its own name")
    port = table.get("port", DEFAULT_PORT)
    if not 0 < port < 65536:
        raise UsageError(f"{path}: port = {port} is not a port; choose one of 1024 to 65535")
    return Cluster(hosts, path.parent / Path(table["secret_file"]).expanduser(), port)


def _host(entry: Any, number: int, path: Path) -> Host:
    where = f"{path}, host {number}"
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is not a table; write [[host]] above its lines")
    _check(entry, _HOST_KEYS, where)
    for key in ("name", "address", "agents"):
        if entry.get(key) in (None, ""):
            raise UsageError(f"{where} ({entry.get('name', 'without a name')}) lacks {key}")
    if entry["agents"] < 1:
        raise UsageError(f"{where} ({entry['name']}) has agents = {entry['agents']}; at least 1, or remove the host")
    return Host(**entry)


def _check(table: dict[str, Any], known: dict[str, type], where: str) -> None:
    for key, value in table.items():
        if key not in known:
            raise UnknownName(f"key of {where}", key, known)
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise UsageError(f"{where}: {key} = {value!r} should be of type {known[key].__name__}")
