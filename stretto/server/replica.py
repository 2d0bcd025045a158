"""One slot at one holder, for one epoch: a link of its chain.

Theory of operation: chain replication (van Renesse and Schneider, OSDI 2004). What changes a slot goes to the first
of its chain, which carries it out and hands it on; so does everybody, in the same order. Only the last one answers. So
whatever an agent was told, all of the chain have; and whoever is first among those who are left has at least what the
others have. One who asks without changing anything asks the last one, and so never hears what may yet be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor

from stretto import state
from stretto.codecs.identity import Identity
from stretto.core import ANY, Codec, Like, Link, Payload, State
from stretto.errors import ProtocolError
from stretto.server.messages import (
    ANSWER,
    CHANGED,
    COPIED,
    COPY,
    LARGE,
    LEASED,
    PULL,
    REQUEST,
    SAME,
    SOME,
    THERE,
    VALUES,
    WHOLE,
    Request,
    numbers,
    read_request,
)
from stretto.server.stock import Stock

Send = Callable[[int, Payload, int], None]
"""To a rank, which may be ours, by a tag."""


class Replica:
    """``uids`` of all members by rank; ``send`` over the slot's link, where ``idle()`` tells whether all has left."""

    def __init__(
        self,
        stock: Stock,
        pull: Codec,
        like: Like,
        chain: Sequence[int],
        uids: Sequence[int],
        rank: int,
        send: Send,
        idle: Callable[[], bool],
        borrow: Callable[[Tensor, torch.dtype], Tensor],
    ) -> None:
        self.stock = stock
        place = list(chain).index(rank)
        self._next = chain[place + 1] if place + 1 < len(chain) else None
        self._ranks = {uid: other for other, uid in enumerate(uids)}
        self._rank, self._send, self._idle, self._borrow = rank, send, idle, borrow
        self._there: dict[int, Tensor] = {}
        self._pull, self._like = pull, like
        self._seen: dict[int, tuple[Tensor, State]] = {}
        self._spare: Tensor | None = None
        self._leaving: Tensor | None = None

    def receive(self, request: Request, body: Payload) -> None:
        """From an agent, or from the one before us.

        Raises:
            ProtocolError: it does not fit.
            DamagedPayload: it cannot be decoded.
        """
        own = self._borrowed(request, body)
        if not request.changes:
            self._tell(request)
            return
        self._step_aside()
        replies = self.stock.apply(request, own)
        if self._next is not None:
            self._send(self._next, (request.head(), *body), REQUEST)
            return
        for reply in replies:
            if reply.about is None:
                self._answer(reply.request)
            else:
                self._send(self._ranks[reply.uid], (reply.about,), LEASED)

    def _borrowed(self, request: Request, body: Payload) -> Payload:
        """What lies in memory that we see, and so does not come: a part, and last of all where values belong."""
        if self.stock.slot.width or not body or body[-1].dtype != torch.int64:
            return body
        dtype = self._like.dtype
        self._there[request.uid] = self._borrow(body[-1], dtype)
        return tuple(self._borrow(x, dtype) if x.dtype == torch.int64 else x for x in body[:-1])

    def _step_aside(self) -> None:
        """What is on its way must not change: go on in other memory."""
        if self._idle():
            self._spare = self._spare if self._spare is not None else self._leaving
            self._leaving = None
        elif self._next is None:
            values, shard = self.stock.shard.values, self.stock.shard
            shard.move(self._spare)
            self._spare, self._leaving = None, values

    def _tell(self, request: Request) -> None:
        if self._next is not None:
            raise ProtocolError(f"slot {self.stock.slot.number} answers at the end of its chain, and here is no end")
        if request.kind == PULL:
            self._answer(request)
            return
        if request.kind == COPY:
            shard = self.stock.shard
            payload = (numbers(COPIED, shard.version, shard.slowest, shard.fastest), state.packed(self.stock.state()))
            self._send(self._ranks[request.uid], payload, ANSWER)
            return
        text = msgspec.json.encode(self.stock.known)
        self._send(self._ranks[request.uid], (torch.frombuffer(bytearray(text), dtype=torch.uint8),), LEASED)

    def _answer(self, request: Request) -> None:
        """Give it the values: as few bytes as that takes."""
        shard, uid = self.stock.shard, request.uid
        about = (shard.version, shard.slowest, shard.fastest)
        payload: Payload
        if request.have == shard.version:
            payload = (numbers(SAME, *about),)
        elif self.stock.slot.width and 0 <= request.have < shard.version and (rows := self._rows(request.have)):
            payload = (numbers(SOME, *about), *rows)
        elif self._pull != Identity() and uid in self._seen and request.have >= 0:
            payload = (numbers(CHANGED, *about), *self._difference(uid))
        else:
            payload = (numbers(WHOLE, *about), shard.values)
            if self._pull != Identity():
                self._seen[uid] = shard.values.clone(), self._pull.init(self._like)
        rank = self._ranks[uid]
        if uid in self._there and len(payload) == 2 and payload[1] is shard.values and rank != self._rank:
            self._there[uid].copy_(shard.values)
            self._send(rank, (numbers(THERE, *about),), ANSWER)
        elif len(payload) == 2 and payload[1] is shard.values and shard.values.nbytes >= LARGE and rank != self._rank:
            self._send(rank, payload[:1], ANSWER)
            self._send(rank, payload[1:], VALUES)
        else:
            self._send(rank, payload, ANSWER)

    def _rows(self, have: int) -> Payload | None:
        """What changed of a table; None where that is most of it."""
        shard, slot = self.stock.shard, self.stock.slot
        rows = shard.rows_since(have)
        table = shard.values.view(-1, slot.width)
        return (rows, table[rows].reshape(-1)) if 2 * rows.numel() < len(table) else None

    def _difference(self, uid: int) -> Payload:
        """What the values are beyond those that it has, coded; we keep what it then has."""
        seen, coding = self._seen[uid]
        payload, coding = self._pull.encode(self.stock.shard.values - seen, self._like, coding)
        change, coding = self._pull.decode(payload, self._like, coding)
        self._seen[uid] = seen.add_(change), coding
        return payload


async def serve(link: Link, replica: Replica) -> None:
    """Carry out what comes over the slot's link, in the order in which it comes.

    Raises:
        PeerLost: nobody is left.
        ProtocolError, DamagedPayload: it is nothing that could be carried out.
    """
    while True:
        replica.receive(*read_request(await link.recv(ANY, REQUEST)))
