"""The courier process: orders in, a session over the mesh, answers out; and the membership in a thread beside it."""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from stretto.core import Epoch, Link, Member, Network
from stretto.courier.desk import Desk, is_complete
from stretto.courier.orders import (
    DTYPES,
    LONGEST,
    Answer,
    Ask,
    Counted,
    Donate,
    Donated,
    Done,
    Extent,
    Failed,
    Finish,
    Heal,
    Healed,
    MakeRoom,
    Memory,
    Passed,
    Room,
    Run,
    Seen,
    Serve,
    Use,
    encode,
    read_order,
)
from stretto.courier.place import Place
from stretto.errors import PeerLost, Refused, StrettoError, UsageError
from stretto.exchanges import agree
from stretto.links.connect import Switchboard
from stretto.links.loop import Loop, Task
from stretto.links.memory import Arena, Board
from stretto.links.mesh import EXCHANGE_BITS, Mesh
from stretto.links.tls import make_certificate
from stretto.membership import Runner, View
from stretto.membership.control import process_state
from stretto.membership.stores import open_store
from stretto.session import Closing, Direct, Order, Session, epoch_of
from stretto.text import parse
from stretto.trace import Trace

_LINGER: Final = 1.0
"""Seconds that a courier which leaves waits for its peers to leave too, and to have read everything."""
_FAREWELL: Final = (1 << EXCHANGE_BITS) - 1


def be_courier(place: Place, pair: socket.socket, trainer: int, desk: Desk) -> NoReturn:
    """The child's whole life."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        gc.freeze()  # what the trainer has open is closed here, and must not be closed again when it is collected
        _close_others({0, 1, 2, pair.fileno(), *(s.fileno() for s in place.sockets)})
        torch.set_num_threads(1)
        _Errands(place, pair, trainer, desk).run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _close_others(keep: set[int]) -> None:
    """Descriptors of the trainer that are no business of ours; mapped memory stays mapped."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue


class _Errands:
    """The courier's whole state: its loop and mesh, the memory it was shown, the session and the membership."""

    def __init__(self, place: Place, pair: socket.socket, trainer: int, desk: Desk) -> None:
        self._place, self._pair, self._trainer = place, pair, trainer
        self._label = place.seat.label
        self._trace = Trace(place.trace, self._label)
        self._loop = Loop()
        self._around = _Around(self, desk)
        self._session = Session(place.seat.uid, self._around, self)
        self.runner = Runner(
            place.seat,
            place.secret,
            view=place.view,
            lead=place.lead,
            head=place.head,
            listener=place.control,
            doors=place.doors,
            min_agents=place.min_agents,
            state=place.state,
            trainer=trainer,
            round=self._around.latest,
            store=open_store(place.store, place.secret) if place.store else None,
            freeze=self._in_loop(self._freeze),
            hold=self._in_loop(self._session.hold),
            install=self._in_loop(self._install),
            out=self._in_loop(self._out),
            deny=self._in_loop(self._deny),
            say=self._say,
            event=self._trace.event,
        )
        self._memory: list[Arena] = []
        self.leaving = self._finished = self._over = False

    def run(self) -> None:
        self._loop.watch(self._pair.fileno(), select.EPOLLIN, self._hear_trainer)
        if any(seat.uid == self._place.seat.uid for seat in self._place.view.seats):
            self._session.install(self._place.view)
        self.runner.start()
        while not self._over:
            self._loop.turn()
        self.runner.close()
        self._around.close()

    def session_round(self) -> int:
        return self._session.begun

    # What the session needs to reach the trainer

    def done(self, number: int, closing: Closing | None) -> None:
        self._answer(Done(number, closing))

    def failed(self, number: int, error: StrettoError) -> None:
        self._answer(Failed(number, type(error).__name__, str(error)))

    def donate(self) -> None:
        self._answer(Donate())

    def make_room(self, nbytes: int) -> None:
        self._answer(MakeRoom(nbytes))

    def heal(self) -> None:
        self._answer(Heal())

    # What the membership tells, in the loop's thread

    def _in_loop(self, function: Callable[..., object]) -> Callable[..., None]:
        return lambda *args: self._loop.call(lambda: function(*args))

    def _freeze(self, number: int) -> None:
        self.runner.frozen(number, self._session.freeze())

    def _install(self, view: View) -> None:
        if self._place.link == "c10d" and not self.leaving:
            lost = PeerLost(
                f"agent {self._label} cannot go on ({view.why}): link c10d loses all with one; use link tcp"
            )
            self._session.refuse(lost)
            return
        self._session.install(view)

    def _out(self, why: str) -> None:
        if self.leaving:
            return
        self._say(f"agent {self._label} is out: {why}; it comes back at its next step")
        self._session.out()

    def _deny(self, why: str) -> None:
        if not self.leaving:
            self._session.refuse(Refused(f"agent {self._label} is not let in: {why}"))
            threading.Thread(target=self.runner.close, daemon=True).start()

    def _say(self, text: str) -> None:
        print(f"stretto: {text}", file=sys.stderr, flush=True)

    # What the trainer orders

    def _hear_trainer(self, _: int) -> None:
        try:
            raw = self._pair.recv(LONGEST)
        except ConnectionError:  # it ended with an answer unread
            raw = b""
        if not raw:
            self._over = True
            return
        order = read_order(raw)
        match order:
            case Run():
                self._session.order(
                    Order(
                        order.number,
                        order.what,
                        self._tensor(order.place),
                        order.group,
                        order.bucket,
                        order.of,
                        order.fence,
                        order.about,
                        order.brings,
                        order.round,
                    )
                )
            case Serve():
                self._around.serve(Arena.open(order.pid, order.fd, order.nbytes), order.rank, order.size)
            case Memory():
                self._memory.append(Arena.open(self._trainer, order.fd, order.nbytes))
            case Use():
                self._session.use(order.group, parse(order.strategy, "strategy"))
            case Donated():
                self._session.donated(self._tensor(order.place))
            case Room():
                self._session.room(self._tensor(order.place))
            case Healed():
                self._session.healed()
            case Passed():
                self._answer(Seen(order.round <= self._around.passed))
            case Ask():
                self._answer(self._counted())
            case Finish():
                self._finished = True
                self._loop.spawn(self._leave())

    def _counted(self) -> Counted:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        totals = self._around.mesh.totals()
        return Counted(
            totals.sent,
            totals.received,
            totals.wire_sent,
            totals.wire_received,
            totals.connections,
            usage.ru_utime + usage.ru_stime,
        )

    def _tensor(self, place: Extent) -> Tensor:
        return self._memory[place.memory].tensor(place.offset, place.numel, DTYPES[place.dtype])

    async def _leave(self) -> None:
        """Stay until the others have our last round too, say goodbye, and read on while they read."""
        self._loop.forget(self._pair.fileno())
        self._pair.close()
        await self._see_the_others_off()
        self.leaving = True
        self.runner.leave()
        self._around.mesh.bye()
        until = time.monotonic() + _LINGER
        while time.monotonic() < until and self._around.mesh.totals().connections:
            await self._loop.sleep(0.01)
        self._over = True

    async def _see_the_others_off(self) -> None:
        """Who leaves is a member until all leave, or go on for a moment without asking for anything.

        If somebody dies meanwhile, we may be the one who has what the others lack.
        """
        until = time.monotonic() + _LINGER
        said: Task | None = None
        where = -1
        while time.monotonic() < until:
            epoch = self._around.mesh.epoch
            if self._session.frozen:
                until = max(until, time.monotonic() + _LINGER)
            elif where != epoch.number:
                where = epoch.number
                said = self._loop.spawn(agree(self._around.link(_FAREWELL), "who leaves", ""))
            if said is not None and said.done and said.error is None:
                return
            await self._loop.sleep(0.002)

    def _answer(self, answer: Answer) -> None:
        try:
            self._pair.send(encode(answer))
        except OSError:
            self._over = self._over or not self._finished


class _Around:
    """The session's surroundings: links of the mesh, tasks of the loop, the runner's ear."""

    def __init__(self, errands: _Errands, desk: Desk) -> None:
        self._errands = errands
        self._desk = desk
        self._board: Board | None = None
        self._sharers: tuple[Member, ...] = ()
        self._left: dict[int, str] = {}
        self.passed = 0
        place = errands._place
        self._uid = place.seat.uid
        self._loop = errands._loop
        self.event = errands._trace.event
        seat = place.seat
        nowhere = Epoch(0, (Member(0, seat.host, seat.pid, seat.addresses, seat.uid, seat.label),))
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
        self.mesh = Mesh(self._loop, 0, nowhere, self._switchboard.dial, self._lost)
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

    def link(self, exchange: int) -> Link:
        return self.mesh.link(exchange)

    def forget(self, exchange: int) -> None:
        self.mesh.forget(exchange)

    def spawn(
        self, coroutine: Coroutine[Any, Any, Any], ended: Callable[[Any, BaseException | None], None]
    ) -> Callable[[], None]:
        task = self._loop.spawn(coroutine)
        task.then(lambda waiter: ended(waiter.value, waiter.error))
        return task.cancel

    def serve(self, arena: Arena, rank: int, size: int) -> None:
        """This epoch's board. (If the epoch is over already the trainer will not use it.)"""
        self._board = Board(arena, rank, size, lambda: self._desk.frozen)
        self._sharers = self.mesh.epoch.members
        self._desk.open()
        self._board.serve()

    def latest(self) -> int:
        """The latest round that the trainer has begun; asked in the membership's thread."""
        return max(self._errands.session_round(), self._desk.begun)

    def hold(self) -> None:
        self._desk.hold()

    def direct(self) -> Direct | None:
        if self._board is None or self._desk.frozen:
            return None
        self._desk.freeze()
        self._board.freeze()
        at = self._desk.standing()
        self.passed = at.round - 1
        return Direct(at.round, at.begun, at.of, at.fence, is_complete(self._board, at))

    def direct_results(self, round: int) -> dict[int, Tensor]:
        assert self._board is not None
        return {
            bucket: self._board.result(ticket, self._desk.blank(bucket))
            for bucket, ticket in enumerate(self._desk.tickets(round))
        }

    def enter(self, epoch: Epoch, rank: int) -> None:
        self._end_writers(epoch)
        self._desk.let_go()
        self._switchboard.enter(epoch.members)
        self.mesh.enter(epoch, rank)

    def _end_writers(self, epoch: Epoch) -> None:
        """Couriers of those who are out could write into the memory of those who are in, if they ran again: end them.

        So are trainers that stand still: when they go on they could take what was begun without us for a result.
        Others have left, and may have a model to save, or find that their courier has ended.
        """
        for rank, member in enumerate(self._sharers):
            pid = self._board.courier_of(rank) if self._board is not None and member.uid not in epoch.uids else 0
            if pid:  # (0 would be all of us)
                for one in (pid, member.pid) if process_state(member.pid) == "T" else (pid,):
                    with suppress(ProcessLookupError):
                        os.kill(one, signal.SIGKILL)
        self._sharers = ()

    def abandon(self) -> None:
        self.mesh.abandon()

    def measured(self, network: Network) -> None:
        self.mesh.network = network

    def ready(self, brought: str) -> None:
        self._errands.runner.ready(brought)

    def at_fence(self, round: int) -> None:
        self._errands.runner.fence(round)

    def _give_up(self, uid: int, why: str) -> None:
        self.mesh.lose(uid, why)

    def _adopt(self, uid: int, sock: socket.socket) -> None:
        self.event("connect", peer=uid, family=sock.family.name, tls=isinstance(sock, ssl.SSLSocket))
        self.mesh.adopt(uid, sock)

    def _lost(self, uid: int, why: str, left: bool) -> None:
        """Who has left with a goodbye is missed only when an exchange needs it."""
        self._switchboard.parted(uid)
        if left:
            self._left[uid] = why
        elif not self._errands.leaving:
            self._errands.runner.suspect(uid, why)

    def missed(self, peer: int) -> None:
        uid = self.mesh.uids[peer] if peer >= 0 else 0
        if uid in self._left and not self._errands.leaving:
            self._errands.runner.suspect(uid, self._left[uid])
