"""Those who push a gradient to one server and pull the values back: plain sockets and other systems, and ours.

A peer is one module with a ``serve(agents, ready)`` that lives in a process of its own (:mod:`.serving`) and a
``Client(address, rank, agents)`` in each agent's. Their work is the same: the server adds minus the gradient to what it
holds, with torch, and sends the values back from where they lie; at the agent they end in a tensor.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from stretto.bench.pushing.contender import Contender
from stretto.bench.pushing.serving import Ready


@dataclass(frozen=True, slots=True)
class Peer:
    """``module`` is imported where it is used, for it imports what ``package`` holds, which need not be there."""

    name: str
    module: str
    package: str = ""

    @property
    def version(self) -> str | None:
        """Of its package; None where that is missing, nothing where it is ours or torch's own."""
        try:
            return version(self.package) if self.package else ""
        except PackageNotFoundError:
            return None

    def serve(self, agents: int, ready: Ready) -> None:
        self._module().serve(agents, ready)

    def client(self, address: str, rank: int, agents: int) -> Contender:
        found: Contender = self._module().Client(address, rank, agents)
        return found

    def _module(self) -> Any:
        return importlib.import_module(f"{__name__}.{self.module}")


SOCKETS: Final = "plain sockets"
GRPC, ZMQ, RAY = "gRPC", "pyzmq", "Ray"
PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer(SOCKETS, "sockets"),
        Peer(GRPC, "rpc", "grpcio"),
        Peer(ZMQ, "zeromq", "pyzmq"),
        Peer(RAY, "objects", "ray"),
        Peer("Arrow Flight", "flight", "pyarrow"),
        Peer("Gloo", "gloo"),
    )
}
