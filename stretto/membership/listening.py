"""Where newcomers come in: a listening socket at an address that they were told, or words why it cannot be had."""

from __future__ import annotations

import errno
import socket
from typing import Final

from stretto.errors import UsageError
from stretto.links import addresses as places

_BACKLOG: Final = 1024


def listen(host: str = "", port: int = 0) -> socket.socket:
    """Listen there; an empty ``host`` is every interface, port 0 any that is free.

    Raises:
        UsageError: the port is in use, or the address is not this machine's.
    """
    try:
        if host:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=_BACKLOG)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=_BACKLOG)
    except OSError as e:
        raise UsageError(_cannot_listen(e, host, port)) from e


def each(addresses: str) -> list[str]:
    """The addresses of a list with commas."""
    return [address for part in addresses.split(",") if (address := part.strip())]


def _cannot_listen(e: OSError, host: str, port: int) -> str:
    where = places.join(host, port) if host else f"port {port} of every interface"
    if e.errno == errno.EADDRINUSE:
        return f"port {port} is in use on {where}; see who has it (`ss -ltnp sport = :{port}`), or choose another port"
    if e.errno == errno.EADDRNOTAVAIL:
        return (
            f"{host} is not an address of this machine, which has {', '.join(places.candidates())}; choose one of these"
        )
    return f"cannot listen on {where}: {e.strerror or e}; choose another address or port"
