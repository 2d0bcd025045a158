"""Where this machine can be reached, found by asking its interfaces and never by its name.

An address is ``host:port`` in text, with IPv6 hosts in brackets. What ``gethostname()`` resolves to is often 127.0.1.1
or a network that the others cannot see; the address that the kernel itself would use towards the coordinator never is.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket

import psutil

from stretto.errors import UnknownName, UsageError

_IPS = (socket.AF_INET, socket.AF_INET6)
_BRIDGES = ("docker", "br-", "virbr", "veth", "cni", "flannel", "lxc", "podman")


def split(address: str) -> tuple[str, int]:
    """Host and port of an address.

    >>> split("10.0.0.1:29400"), split("[fe80::1]:80")
    (('10.0.0.1', 29400), ('fe80::1', 80))
    """
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = len(host) - len(bare) == 2
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in host and not bracketed):
        raise UsageError(f"{address!r} is not an address; write host:port, or [host]:port for IPv6")
    return bare, int(port)


def join(host: str, port: int) -> str:
    """The inverse of :func:`split`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def plain(ip: str) -> str:
    """An IP without its scope, and as IPv4 where it is IPv4 in disguise (``::ffff:10.0.0.1``)."""
    value = ipaddress.ip_address(ip.partition("%")[0])
    mapped = value.ipv4_mapped if isinstance(value, ipaddress.IPv6Address) else None
    return str(mapped or value)


def own() -> dict[str, tuple[str, ...]]:
    """The IPs of every interface of this machine, by interface name."""
    found = psutil.net_if_addrs()
    return {name: tuple(plain(a.address) for a in entries if a.family in _IPS) for name, entries in found.items()}


def is_here(host: str) -> bool:
    """Is ``host`` (an IP or a name, without a port; empty: every interface) this machine, in this network namespace?"""
    if not host:
        return True
    try:
        ips = {plain(str(entry[4][0])) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    mine = {ip for entries in own().values() for ip in entries}
    return all(ip in mine or is_loopback(ip) for ip in ips)


def candidates(toward: str | None = None, interface: str | None = None) -> tuple[str, ...]:
    """This machine's IPs, the most useful first: the one that leads ``toward`` an address, loopback last.

    Bridges of containers come late: every host has the same there. Link-local IPv6 is left out.

    Raises:
        UnknownName: this machine has no such ``interface``.
    """
    interfaces = own()
    if interface is not None:
        if interface not in interfaces:
            raise UnknownName("network interface", interface, interfaces)
        interfaces = {interface: interfaces[interface]}
    found = [(name, ip) for name, ips in interfaces.items() for ip in ips if not _is_scoped(ip)]
    ordered = [ip for _, ip in sorted(found, key=_uselessness)]
    first = _leading(toward) if toward is not None else None
    if first in ordered:
        ordered.remove(first)
        ordered.insert(0, first)
    return tuple(dict.fromkeys(ordered))


def machine_id() -> str:
    """Names those who can share memory and Unix sockets: one kernel, network, ``/proc``, ``/dev/shm`` and user.

    Containers of one kernel differ in it, and so do hosts made of network namespaces.
    """
    parts: list[object] = [os.getuid(), *(os.stat(f"/proc/self/ns/{space}").st_ino for space in ("net", "pid"))]
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        parts.append(f.read().strip())
    parts.append(os.stat("/dev/shm").st_dev if os.path.isdir("/dev/shm") else 0)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _leading(toward: str) -> str | None:
    """The local IP that the kernel's routes would use. Connecting a UDP socket sends nothing."""
    host, port = split(toward)
    try:
        for family, kind, _, _, target in socket.getaddrinfo(host, port or 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                probe.connect(target)
                return plain(probe.getsockname()[0])
    except OSError:
        return None
    return None


def _uselessness(entry: tuple[str, str]) -> tuple[bool, bool, bool, str]:
    name, ip = entry
    return is_loopback(ip), name.startswith(_BRIDGES), ":" in ip, name


def is_loopback(ip: str) -> bool:
    """Does ``ip`` lead only to this machine (or, unspecified, to any)?"""
    value = ipaddress.ip_address(ip)
    return value.is_loopback or value.is_unspecified


def _is_scoped(ip: str) -> bool:
    value = ipaddress.ip_address(ip)
    return value.version == 6 and value.is_link_local
