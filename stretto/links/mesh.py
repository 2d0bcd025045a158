"""This agent's connections: one a pair, made when an exchange first needs it, shared by all exchanges of all epochs.

Theory of operation. Connections belong to processes (uids) and outlive epochs; links belong to exchanges, and these to
epochs. A channel's number is (epoch, exchange). When an epoch is abandoned its links are dropped and what still
arrives for them is read and thrown away; what arrives for an epoch that we have yet to enter waits for us.
"""

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
EXCHANGE_BITS = 40


@dataclass(frozen=True, slots=True)
class Totals:
    """Bytes of this agent's streams: as handed to the system, and (TCP) as the system put them on the wire."""

    sent: int
    received: int
    wire_sent: int
    wire_received: int
    connections: int


class Mesh:
    """This agent's connections.

    ``dial(uid)`` starts making the connection to a peer, in the background, and ends in :meth:`adopt` or :meth:`lose`.
    ``lost(uid, why, left)`` is told once of every member of the epoch that is lost, or has ``left`` with a goodbye;
    ``parted(uid)`` whenever there is no connection any more, so that another may be made.
    """

    link_type: type[StreamLink] = StreamLink

    def __init__(
        self,
        loop: Loop,
        rank: int,
        epoch: Epoch,
        dial: Callable[[int], None],
        lost: Callable[[int, str, bool], None] = lambda uid, why, left: None,
        parted: Callable[[int], None] = lambda uid: None,
    ) -> None:
        self.loop = loop
        self.network = Network()
        self._dial, self._on_lost, self._parted = dial, lost, parted
        self._peers: dict[int, Peer] = {}
        self._links: dict[int, StreamLink] = {}
        self._lost: dict[int, PeerLost] = {}
        self._past = [0, 0, 0, 0]
        self._closed_below = 0
        self.enter(epoch, rank)

    def enter(self, epoch: Epoch, rank: int) -> None:
        """From now on links are of ``epoch``; those who are no members are left, and a broken pair may meet again."""
        self.epoch, self.rank = epoch, rank
        self.size, self.hosts, self.uids = epoch.size, epoch.hosts, epoch.uids
        self.agents = epoch.agents.size
        self.ranks = {uid: r for r, uid in enumerate(self.uids)}
        self.name = epoch.members[rank].name
        self._closed_below = epoch.number << EXCHANGE_BITS
        for number in [n for n in self._links if n < self._closed_below]:
            del self._links[number]
        for uid in [u for u in self._peers if u not in self.ranks]:
            self._drop(uid, PeerLost(f"{self.name} goes on without it"))
        self._lost.clear()
        for number, link in self._links.items():
            if number >> EXCHANGE_BITS == epoch.number:
                link.attach()

    def abandon(self) -> None:
        """Drop every link of this epoch; what is still on its way for them is thrown away."""
        self._closed_below = (self.epoch.number + 1) << EXCHANGE_BITS
        for number in [n for n in self._links if n < self._closed_below]:
            del self._links[number]
        for peer in self._peers.values():
            peer.forget(self._closed_below)

    def link(self, exchange: int, *, whole: bool = False) -> StreamLink:
        """The link of an exchange of this epoch; a peer's messages may have made it before us.

        It is the agents', who come before the servers; ``whole``: of all members.
        """
        number = self.epoch.number << EXCHANGE_BITS | exchange
        link = self._links.get(number)
        if link is None:
            link = self._make(number)
        if whole:
            link.widen()
        return link

    def channel(self, number: int) -> StreamLink | None:
        """The link that a frame belongs to; None when its epoch is over."""
        link = self._links.get(number)
        if link is None and number >= self._closed_below:
            link = self._make(number)
        return link

    def _make(self, number: int) -> StreamLink:
        if len(self._links) >= MOST_CHANNELS:
            raise ProtocolError(f"more than {MOST_CHANNELS} exchanges at once")
        link = self._links[number] = self.link_type(self, number)
        if number >> EXCHANGE_BITS == self.epoch.number:
            link.attach()
        return link

    def forget(self, exchange: int) -> None:
        """An exchange is over; its channel is not used again."""
        self._links.pop(self.epoch.number << EXCHANGE_BITS | exchange, None)

    def credit(self, uid: int, number: int, amount: int) -> None:
        """Credit that comes after its exchange is over is of no use to anyone."""
        channel = self._links.get(number)
        if channel is not None:
            channel.credit(uid, amount)

    def reach(self, uid: int) -> Peer | None:
        """The connection to ``uid``, dialled if need be; None when it is lost."""
        connection = self._peers.get(uid)
        if connection is None:
            if uid in self._lost or uid not in self.ranks:
                return None
            connection = self._peers[uid] = self._meet(uid)
        return connection

    def uid_of(self, peer: int) -> int:
        """The uid of rank ``peer``, which is another's."""
        if not 0 <= peer < self.size or peer == self.rank:
            raise UsageError(f"rank {self.rank} cannot reach rank {peer}: the others are among 0 to {self.size - 1}")
        return self.uids[peer]

    def _meet(self, uid: int) -> Peer:
        self._dial(uid)
        return Connection(self, uid)

    def adopt(self, uid: int, sock: socket.socket) -> None:
        """A proven connection to ``uid`` is there; it may be ahead of us, in an epoch that we do not know yet.

        So one that was lost in this epoch may come: it is taken, for the next.
        """
        connection = self._peers.setdefault(uid, Connection(self, uid))
        if not isinstance(connection, Connection) or connection.is_open:
            sock.close()
            return
        connection.open(sock)

    def why_lost(self, uid: int, among: int = 0) -> PeerLost | None:
        """Why ``uid`` is lost, if it is; :data:`ANY`: all others of the first ``among`` ranks."""
        if uid != ANY:
            return self._lost.get(uid)
        others = among - (self.rank < among)
        lost = [error for error in self._lost.values() if error.peer < among]
        return lost[0] if len(lost) >= others > 0 else None

    def meets(self, uid: int) -> bool:
        """Is there a connection to ``uid``, whose end would be noticed?"""
        connection = self._peers.get(uid)
        return connection is not None and connection.is_open

    def lose(self, uid: int, why: str, left: bool = False) -> None:
        """``uid`` is gone: whoever waits for it learns at once."""
        if uid in self._lost:
            self._drop(uid, self._lost[uid])
            return
        rank = self.ranks.get(uid)
        if rank is None:
            self._drop(uid, PeerLost(f"{self.name} lost a connection: {why}"))
            return
        error = PeerLost(f"{self.name} lost {self.epoch.members[rank].name}: {why}", rank)
        self._lost[uid] = error
        self._drop(uid, error)
        for channel in list(self._links.values()):
            channel.lose(uid, error)
        self._on_lost(uid, why, left)

    def _drop(self, uid: int, error: PeerLost) -> None:
        connection = self._peers.pop(uid, None)
        if connection is not None:
            self._count(connection)
            connection.close(error)
            self._parted(uid)

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

    def part(self) -> None:
        """Drop every connection: the others have dropped theirs with us, and we may not have heard of it yet."""
        for uid in list(self._peers):
            self._drop(uid, PeerLost(f"{self.name} was left out"))

    def bye(self) -> None:
        """Tell the peers that this agent leaves on purpose, and send no more."""
        for c in list(self._peers.values()):
            c.goodbye()

    def close(self) -> None:
        for c in self._peers.values():
            c.close()
        self._peers.clear()
