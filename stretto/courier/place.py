"""Everything a courier needs to know to serve: who we are, who the others are, and the sockets to meet them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from stretto.membership.messages import Seat, View


@dataclass(frozen=True)
class Place:
    """Where a process stands when it has arrived. ``view`` may be one that it is not in: then it is a newcomer.

    ``lead`` is the control connection that it came by, with process ``head``; ``data`` and ``control`` listen. At
    ``doors`` newcomers look for the run, or in the ``store`` that decides on its views.
    """

    seat: Seat
    view: View
    secret: str
    lead: socket.socket
    head: int
    data: tuple[socket.socket, ...]
    control: socket.socket
    link: str = "tcp"
    doors: tuple[str, ...] = ()
    store: str = ""
    min_agents: int | None = None
    state: Path | None = None
    trace: Path | None = None

    @property
    def inside(self) -> bool:
        """Is it in the view?"""
        return any(seat.uid == self.seat.uid for seat in self.view.seats)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return (self.lead, self.control, *self.data)

    def close(self) -> None:
        """The courier has its own."""
        for sock in self.sockets:
            sock.close()
