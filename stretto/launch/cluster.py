"""``cluster.toml``: the machines of a run, how many agents each has, its servers, and where their secret lies.

secret_file = "secret"          # beside this file, readable by you alone
port = 29400                    # of the coordinator, on the first host; of its successor, on the next one

[[host]]
name = "a"
address = "10.0.0.1"
agents = 2
interface = "eth1"              # optional: the network to use

[server]                        # optional: processes that hold parameters and train nothing, and where each is reached
s0 = "10.0.0.3:29500"
s1 = "10.0.0.1"                 # without a port: at any that is free
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stretto.errors import UnknownName, UsageError
from stretto.launch.secret import secret_in
from stretto.links import addresses as places

DEFAULT_PORT: Final = 29400
_KEYS = {"secret_file": str, "port": int, "host": list, "server": dict}
_HOST_KEYS = {"name": str, "address": str, "agents": int, "interface": str}


@dataclass(frozen=True, slots=True)
class Host:
    """One machine of the cluster; ``address`` is its IP or name, without a port."""

    name: str
    address: str
    agents: int
    interface: str | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """A process that holds parameters: on the machine with this ``address``, at this ``port`` (0: any)."""

    name: str
    address: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """What belongs on one machine: a host's agents, if it has any, and servers, each with its port by number."""

    host: Host | None
    posts: dict[int, int]


@dataclass(frozen=True, slots=True)
class Cluster:
    """All machines. Ranks count through the hosts in their order; the first has the coordinator."""

    hosts: tuple[Host, ...]
    secret_file: Path
    port: int = DEFAULT_PORT
    servers: tuple[Server, ...] = ()

    @property
    def size(self) -> int:
        return sum(host.agents for host in self.hosts)

    @property
    def coordinators(self) -> str:
        """Where the coordinator is, and after it where its successors would be, between commas."""
        return ",".join(dict.fromkeys(places.join(host.address, self.port) for host in self.hosts))

    def machine(self, name: str) -> Machine:
        """The machine of this host, or server."""
        addresses = {server.name: server.address for server in self.servers}
        addresses |= {host.name: host.address for host in self.hosts}
        if name not in addresses:
            raise UnknownName("host", name, addresses)
        return self._machine(lambda address: address == addresses[name])

    def part(self, name: str) -> range:
        """The ranks of one host."""
        before = 0
        for host in self.hosts:
            if host.name == name:
                return range(before, before + host.agents)
            before += host.agents
        raise UnknownName("host", name, [host.name for host in self.hosts])

    def which(self) -> Machine:
        """What belongs on this machine, by its own addresses.

        Raises:
            UsageError: nothing does, or several hosts do.
        """
        here = [host for host in self.hosts if places.is_here(host.address)]
        found = self._machine(places.is_here)
        if len(here) <= 1 and (here or found.posts):
            return found
        mine = ", ".join(places.candidates())
        if not here:
            raise UsageError(
                f"no host of the cluster has an address of this machine ({mine}); add it, or name the host"
            )
        names = ", ".join(host.name for host in here)
        raise UsageError(f"this machine ({mine}) could be any of the hosts {names}; say which one it is by its name")

    def _machine(self, is_there: Callable[[str], bool]) -> Machine:
        host = next((host for host in self.hosts if is_there(host.address)), None)
        return Machine(host, {i: server.port for i, server in enumerate(self.servers) if is_there(server.address)})

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
        if "Cannot overwrite a value" in str(e):
            raise UsageError(f"{path} gives two of one name (line {_line(e)}); give each server its own name") from e
        raise UsageError(f"{path} is not TOML: {e}") from e
    _check(table, _KEYS, str(path))
    if "secret_file" not in table:
        raise UsageError(f'{path} lacks secret_file; write secret_file = "secret", the same file on every host')
    hosts = tuple(_host(entry, i, path) for i, entry in enumerate(table.get("host", []), start=1))
    if not hosts:
        raise UsageError(f"{path} has no host; write a [[host]] with name, address and agents for each machine")
    servers = tuple(_server(name, address, path) for name, address in table.get("server", {}).items())
    names = [host.name for host in hosts] + [server.name for server in servers]
    for name in names:
        if names.count(name) > 1:
            what = "hosts" if name not in table.get("server", {}) else "machines"
            raise UsageError(f"{path} has several {what} named {name!r}; give each its own name")
    _check_ports(servers, path)
    port = table.get("port", DEFAULT_PORT)
    if not 0 < port < 65536:
        raise UsageError(f"{path}: port = {port} is not a port; choose one of 1024 to 65535")
    return Cluster(hosts, path.parent / Path(table["secret_file"]).expanduser(), port, servers)


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


def _server(name: str, address: Any, path: Path) -> Server:
    where = f"{path}, server {name}"
    if not isinstance(address, str) or not address:
        raise UsageError(f'{where} = {address!r} is no address; write {name} = "HOST:PORT", or "HOST" for any port')
    bare = ":" not in address or ("]" not in address and address.count(":") > 1)
    if bare:
        return Server(name, address)
    try:
        return Server(name, *places.split(address))
    except UsageError as e:
        raise UsageError(f"{where}: {e}") from e


def _check_ports(servers: Sequence[Server], path: Path) -> None:
    taken: dict[tuple[str, int], str] = {}
    for server in servers:
        other = taken.setdefault((server.address, server.port), server.name) if server.port else server.name
        if other != server.name:
            where = places.join(server.address, server.port)
            raise UsageError(f"{path}: servers {other} and {server.name} are both at {where}; give each its own port")


def _check(table: dict[str, Any], known: dict[str, type], where: str) -> None:
    for key, value in table.items():
        if key not in known:
            raise UnknownName(f"key of {where}", key, known)
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise UsageError(f"{where}: {key} = {value!r} should be of type {known[key].__name__}")


def _line(error: Exception) -> str:
    found = re.search(r"line (\d+)", str(error))
    return found[1] if found else "?"
