"""Everything a courier needs to know of the epoch it serves."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from stretto.core import Epoch, Network
from stretto.links.memory import Board


@dataclass(frozen=True)
class Place:
    """Who an agent is, who the others are, and the sockets to meet them; ``board`` where all share memory."""

    rank: int
    epoch: Epoch
    network: Network
    secret: str
    coordinator: socket.socket
    listeners: tuple[socket.socket, ...]
    link: str = "tcp"
    board: Board | None = None
    trace: Path | None = None
