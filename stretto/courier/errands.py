"""The courier process: orders in, a session over the mesh, answers out; and the membership in a thread beside it."""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import socket
import time
import traceback
from typing import Final, NoReturn

import msgspec
import torch
from torch import Tensor

from stretto import state
from stretto.courier.desk import Desk
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
    Hold,
    Inquire,
    MakeRoom,
    Memory,
    Passed,
    Push,
    Recall,
    Recalled,
    Remember,
    Remembered,
    Room,
    Run,
    Seen,
    Serve,
    Use,
    encode,
    read_order,
)
from stretto.courier.place import Place
from stretto.courier.presence import LINGER, Presence
from stretto.courier.sharing import Sharing
from stretto.errors import StrettoError
from stretto.exchanges import agree
from stretto.links.loop import Task
from stretto.links.memory import Arena
from stretto.links.mesh import EXCHANGE_BITS
from stretto.server.settlement import Spec
from stretto.session import Closing, Order, Session
from stretto.text import parse

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
    """The courier's whole state: its presence in the run with a session, and the memory it was shown."""

    def __init__(self, place: Place, pair: socket.socket, trainer: int, desk: Desk) -> None:
        self._pair, self._trainer = pair, trainer
        self._sharing = Sharing(desk)
        self._presence = Presence(
            place,
            self._sharing,
            lambda around: Session(place.seat.uid, around, self),
            trainer=trainer,
            begun=self._latest,
        )
        self._loop, self._around, self._session = self._presence.loop, self._presence.around, self._presence.session
        self._memory: list[Arena] = []
        self._recalled: Arena | None = None
        self._finished = False

    def run(self) -> None:
        self._loop.watch(self._pair.fileno(), select.EPOLLIN, self._hear_trainer)
        self._presence.run()

    def _latest(self) -> int:
        """The latest round that the trainer has begun; asked in the membership's thread."""
        return max(self._session.begun, self._sharing.begun)

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

    # What the trainer orders

    def _hear_trainer(self, _: int) -> None:
        try:
            raw = self._pair.recv(LONGEST)
        except ConnectionError:  # it ended with an answer unread
            raw = b""
        if not raw:
            self._presence.over = True
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
                        order.part,
                        order.clock,
                    )
                )
            case Serve():
                board = Arena.open(order.pid, order.fd, order.nbytes)
                self._sharing.serve(board, order.rank, self._around.mesh.epoch.agents.members)
            case Memory():
                self._memory.append(Arena.open(self._trainer, order.fd, order.nbytes))
                self._around.lending.show(self._trainer, order.fd, self._memory[-1])
            case Hold() | Push() | Inquire():
                self._serve(order)
            case Use():
                self._session.use(order.group, parse(order.strategy, "strategy"), order.layouts)
            case Donated() | Room() | Healed():
                self._heal_on(order)
            case Passed():
                self._answer(Seen(self._sharing.saw(order.round)))
            case Recall() | Remember() | Ask():
                self._answer(self._told(order))
            case Finish():
                self._finished = True
                self._loop.spawn(self._leave())

    def _heal_on(self, order: Donated | Room | Healed) -> None:
        """A newcomer is given what it lacks."""
        match order:
            case Donated():
                self._session.donated(self._tensor(order.place))
            case Room():
                self._session.room(self._tensor(order.place))
            case Healed():
                self._session.healed()

    def _serve(self, order: Hold | Push | Inquire) -> None:
        """What is for servers."""
        match order:
            case Hold():
                values = [self._tensor(place) for place in order.values]
                self._session.hold_slots(msgspec.msgpack.decode(order.spec, type=Spec), order.layouts, values)
            case Push():
                parts = [tuple(self._tensor(place) for place in part) for part in order.parts]
                hyper = torch.tensor(order.hyper, dtype=torch.float64)
                self._session.push(order.number, order.weight, order.lease, hyper, parts)
            case Inquire():
                self._session.ask(order.number, order.what, self._tensor(order.place), order.clock)

    def _told(self, order: Recall | Remember | Ask) -> Answer:
        match order:
            case Recall():
                return self._recall()
            case Remember():
                return self._remember(order)
        return self._counted()

    def _recall(self) -> Recalled:
        if self._recalled is not None:
            self._recalled.close()
        made: list[Arena] = []

        def room(nbytes: int) -> Tensor:
            made.append(Arena.create(nbytes))
            return made[0].bytes

        used = state.pack(self._session.remembered(), room)
        self._recalled = made[0]
        return Recalled(made[0].fd, used.numel())

    def _remember(self, order: Remember) -> Remembered:
        try:
            self._session.restore(state.unpack(self._tensor(order.place).clone()), order.scale)
        except StrettoError as e:
            return Remembered(str(e))
        return Remembered()

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
            *self._session.metered,
        )

    def _tensor(self, place: Extent) -> Tensor:
        return self._memory[place.memory].tensor(place.offset, place.numel, DTYPES[place.dtype])

    async def _leave(self) -> None:
        """Stay until the others have our last round too, say goodbye, and read on while they read."""
        self._loop.forget(self._pair.fileno())
        self._pair.close()
        await self._see_the_others_off()
        await self._presence.leave()

    async def _see_the_others_off(self) -> None:
        """Who leaves is a member until all leave, or go on for a moment without asking for anything.

        If somebody dies meanwhile, we may be the one who has what the others lack.
        """
        until = time.monotonic() + LINGER
        said: Task | None = None
        where = -1
        while time.monotonic() < until:
            epoch = self._around.mesh.epoch
            if self._session.frozen:
                until = max(until, time.monotonic() + LINGER)
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
            self._presence.over |= not self._finished
