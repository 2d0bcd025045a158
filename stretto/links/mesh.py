"""This agent's connections in one epoch: one a pair, made when an exchange first needs it, shared by all exchanges."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from stretto.core import ANY, Epoch, Network
from stretto.errors import PeerLost, ProtocolError, UsageError
from stretto.links.channel import StreamLink
from stretto.links.loop import Loop
from stretto.links.stream import Connection, Peer

MOST_CHANNELS = 4096


@dataclass(frozen=True, slots=True)
class Totals:
    """Bytes of this agent's streams: as handed to the system, and (TCP) as the system put them on the wire."""

    sent: int
    received: int
    wire_sent: int
    wire_received: int
    connections: int


class Mesh:
    """This agent's connections in one epoch.

    ``dial(peer)`` starts making the connection to a peer, in the background, and ends in :meth:`adopt` or :meth:`lose`.
    """

    link_type: type[StreamLink] = StreamLink

    def __init__(self, loop: Loop, rank: int, epoch: Epoch, dial: Callable[[int], None]) -> None:
        self.loop, self.rank, self.epoch = loop, rank, epoch
        self.size, self.hosts = epoch.size, epoch.hosts
        self.network = Network()
        self._dial = dial
        self._peers: dict[int, Peer] = {}
        self._links: dict[int, StreamLink] = {}
        self._lost: dict[int, PeerLost] = {}
        self._past = [0, 0, 0, 0]

    def link(self, number: int) -> StreamLink:
        """The link of exchange ``number``; a peer's messages may have made it before us."""
        link = self._links.get(number)
        if link is None:
            if len(self._links) >= MOST_CHANNELS:
                raise ProtocolError(f"more than {MOST_CHANNELS} exchanges at once")
            link = self._links[number] = self.link_type(self, number)
        return link

    def forget(self, number: int) -> None:
        """An exchange is over; its channel is not used again."""
        self._links.pop(number, None)

    def credit(self, peer: int, number: int, amount: int) -> None:
        """Credit that comes after its exchange is over is of no use to anyone."""
        channel = self._links.get(number)
        if channel is not None:
            channel.credit(peer, amount)

    def reach(self, peer: int) -> Peer | None:
        """The connection to ``peer``, dialled if need be; None when it is lost."""
        connection = self._peers.get(peer)
        if connection is None:
            if peer in self._lost:
                return None
            if not 0 <= peer < self.size or peer == self.rank:
                raise UsageError(
                    f"agent {self.rank} cannot reach agent {peer}: the others are among 0 to {self.size - 1}"
                )
            connection = self._peers[peer] = self._meet(peer)
        return connection

    def _meet(self, peer: int) -> Peer:
        self._dial(peer)
        return Connection(self, peer)

    def adopt(self, peer: int, sock: socket.socket) -> None:
        """A proven connection to ``peer`` is there."""
        connection = self._peers.setdefault(peer, Connection(self, peer))
        if not isinstance(connection, Connection) or connection.is_open or peer in self._lost:
            sock.close()
            return
        connection.open(sock)

    def why_lost(self, peer: int) -> PeerLost | None:
        if peer == ANY:
            return next(iter(self._lost.values())) if len(self._lost) >= self.size - 1 > 0 else None
        return self._lost.get(peer)

    def meets(self, peer: int) -> bool:
        """Is there a connection to ``peer``, whose end would be noticed?"""
        connection = self._peers.get(peer)
        return connection is not None and connection.is_open

    def lose(self, peer: int, why: str) -> None:
        """``peer`` is gone: whoever waits for it learns at once."""
        if peer in self._lost:
            return
        error = PeerLost(f"agent {self.rank} lost agent {peer}: {why}", peer)
        self._lost[peer] = error
        connection = self._peers.pop(peer, None)
        if connection is not None:
            self._count(connection)
            connection.close(error)
        for channel in list(self._links.values()):
            channel.lose(peer, error)

    def _count(self, connection: Peer) -> None:
        for i, n in enumerate((connection.sent, connection.received, *connection.wire_bytes())):
            self._past[i] += n

    def totals(self) -> Totals:
        sums = list(self._past)
        for c in self._peers.values():
            for i, n in enumerate((c.sent, c.received, *c.wire_bytes())):
                sums[i] += n
        sent, received, wire_sent, wire_received = sums
        open_now = sum(c.is_open for c in self._peers.values())
        return Totals(sent, received, wire_sent, wire_received, open_now)

    def bye(self) -> None:
        """Tell the peers that this agent leaves on purpose, and send no more."""
        for c in list(self._peers.values()):
            c.goodbye()

    def close(self) -> None:
        for c in self._peers.values():
            c.close()
        self._peers.clear()
