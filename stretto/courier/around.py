"""A session's surroundings in a courier: links of the mesh, tasks of the loop, shared memory, the membership's ear."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import torch
from torch import Tensor

from stretto.core import Epoch, Link, Member, Network
from stretto.courier.lending import Lending
from stretto.courier.place import Place
from stretto.courier.sharing import Sharing
from stretto.errors import UsageError
from stretto.links.connect import Switchboard
from stretto.links.loop import Loop
from stretto.links.mesh import Mesh
from stretto.links.tls import make_certificate
from stretto.membership.messages import Report
from stretto.session import Direct, epoch_of


class Ear(Protocol):
    """What the membership is told."""

    def ready(self, brought: str) -> None: ...
    def fence(self, round: int) -> None: ...
    def frozen(self, number: int, report: Report) -> None: ...
    def suspect(self, uid: int, why: str) -> None: ...


class Around:
    """``ear`` is to be set before anything happens; ``deaf`` when we leave and nobody is to be suspected any more."""

    ear: Ear

    def __init__(self, loop: Loop, place: Place, sharing: Sharing, event: Callable[..., None]) -> None:
        self._loop, self._sharing, self.event = loop, sharing, event
        self.deaf = False
        self.lending, self._shares = Lending(), place.link == "shm"
        self._left: dict[int, str] = {}
        seat = place.seat
        nowhere = Epoch(0, (Member(0, seat.host, seat.pid, seat.addresses, seat.uid, seat.label, True, seat.serves),))
        self._switchboard = Switchboard(
            self._loop,
            nowhere.members[0],
            nowhere.members,
            place.secret,
            make_certificate(),
            unix=False,
            adopt=self._adopt,
            lose=self._give_up,
        )
        self.mesh = Mesh(self._loop, 0, nowhere, self._switchboard.dial, self._lost, self._switchboard.parted)
        if place.link == "c10d":
            self.mesh = self._meet_by_c10d(place)
        else:
            for listener in place.data:
                self._switchboard.answer(listener)

    def _meet_by_c10d(self, place: Place) -> Mesh:
        from stretto.links import c10d  # noqa: PLC0415  (torch.distributed is loaded where it is asked for)

        epoch = epoch_of(place.view)
        if place.seat.uid not in epoch.uids:
            raise UsageError(f"agent {place.seat.label} comes too late: link c10d takes no newcomers; use link tcp")
        rank = epoch.uids.index(place.seat.uid)
        groups = c10d.Groups(rank, epoch, place.data[0].fileno())
        return c10d.GroupMesh(self._loop, rank, epoch, groups, self._lost)

    def close(self) -> None:
        self._switchboard.close()
        self.mesh.close()

    def link(self, exchange: int, *, whole: bool = False) -> Link:
        return self.mesh.link(exchange, whole=whole)

    def forget(self, exchange: int) -> None:
        self.mesh.forget(exchange)

    def spawn(
        self, coroutine: Coroutine[Any, Any, Any], ended: Callable[[Any, BaseException | None], None]
    ) -> Callable[[], None]:
        task = self._loop.spawn(coroutine)
        task.then(lambda waiter: ended(waiter.value, waiter.error))
        return task.cancel

    def cpu(self) -> float:
        return time.thread_time()

    def hold(self) -> None:
        self._sharing.hold()

    def direct(self) -> Direct | None:
        return self._sharing.direct()

    def direct_results(self, round: int) -> dict[int, Tensor]:
        return self._sharing.direct_results(round)

    def enter(self, epoch: Epoch, rank: int) -> None:
        self._sharing.enter(epoch)
        self.lending.give_back()
        self._switchboard.enter(epoch.members)
        self.mesh.enter(epoch, rank)

    def part(self) -> None:
        self.mesh.part()

    def abandon(self) -> None:
        self.mesh.abandon()

    def lend(self, x: Tensor) -> Tensor | None:
        return self.lending.lend(x) if self._shares else None

    def borrow(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        return self.lending.borrow(words, dtype)

    def measured(self, network: Network) -> None:
        self.mesh.network = network

    def ready(self, brought: str) -> None:
        self.ear.ready(brought)

    def at_fence(self, round: int) -> None:
        self.ear.fence(round)

    def report_again(self, report: Report) -> None:
        self.ear.frozen(self.mesh.epoch.number, report)

    def _give_up(self, uid: int, why: str) -> None:
        self.mesh.lose(uid, why)

    def _adopt(self, uid: int, sock: socket.socket) -> None:
        self.event("connect", peer=uid, family=sock.family.name, tls=isinstance(sock, ssl.SSLSocket))
        self.mesh.adopt(uid, sock)

    def _lost(self, uid: int, why: str, left: bool) -> None:
        """Who has left with a goodbye is missed only when an exchange needs it."""
        if left:
            self._left[uid] = why
        elif not self.deaf:
            self.ear.suspect(uid, why)

    @property
    def left(self) -> frozenset[int]:
        """Those that have said goodbye to us."""
        return frozenset(self._left)

    def missed(self, peer: int) -> None:
        uid = self.mesh.uids[peer] if peer >= 0 else 0
        if uid in self._left and not self.deaf:
            self.ear.suspect(uid, self._left[uid])
