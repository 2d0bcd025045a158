"""The courier process: orders in, coroutines over the mesh, answers out."""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import socket
import ssl
import threading
import time
import traceback
from typing import Final, NoReturn

import torch
from torch import Tensor

from stretto.courier.orders import (
    DTYPES,
    LONGEST,
    Answer,
    Ask,
    Counted,
    Done,
    Failed,
    Finish,
    Memory,
    Run,
    Use,
    encode,
    read_order,
)
from stretto.courier.place import Place
from stretto.errors import PeerLost, StrettoError
from stretto.exchanges import agree, broadcast, measure
from stretto.links.channel import StreamLink
from stretto.links.connect import Switchboard
from stretto.links.loop import Loop
from stretto.links.memory import Arena
from stretto.links.mesh import Mesh
from stretto.links.tls import make_certificate
from stretto.membership.messages import LONGEST_ANSWER, Decoder, Leave, Left, Lost
from stretto.membership.messages import encode as encode_message
from stretto.session import Session
from stretto.text import parse
from stretto.trace import Trace

_LINGER: Final = 1.0
"""Seconds that a courier which leaves waits for its peers to have read everything."""


def be_courier(place: Place, pair: socket.socket, trainer: int) -> NoReturn:
    """The child's whole life."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        gc.freeze()  # what the trainer has open is closed here, and must not be closed again when it is collected
        _close_others({0, 1, 2, pair.fileno(), place.coordinator.fileno(), *(s.fileno() for s in place.listeners)})
        torch.set_num_threads(1)
        _Errands(place, pair, trainer).run()
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
    """The courier's whole state: its loop and mesh, the memory it was shown, a session for each group of buckets."""

    def __init__(self, place: Place, pair: socket.socket, trainer: int) -> None:
        self._place, self._pair, self._trainer = place, pair, trainer
        self._loop = Loop()
        self._mesh = self._make_mesh()
        self._mesh.network = place.network
        self._switchboard = Switchboard(
            self._loop,
            place.rank,
            place.epoch.number,
            place.epoch.members,
            place.secret,
            make_certificate(),
            unix=place.board is not None,
            adopt=self._adopt,
            lose=self._lose,
        )
        self._decoder = Decoder(LONGEST_ANSWER)
        self._memory: list[Arena] = []
        self._sessions: dict[int, Session] = {}
        self._running = 0
        self._leaving = False
        self._over = False
        self._reasons: dict[int, str] = {}
        self._trace = Trace(place.trace, place.rank)

    def _make_mesh(self) -> Mesh:
        if self._place.link != "c10d":
            return Mesh(self._loop, self._place.rank, self._place.epoch, self._dial)
        from stretto.links import c10d  # noqa: PLC0415  (torch.distributed is loaded where it is asked for)

        groups = c10d.Groups(self._place.rank, self._place.epoch, self._place.listeners[0].fileno())
        return c10d.GroupMesh(self._loop, self._place.rank, self._place.epoch, groups)

    def _adopt(self, peer: int, sock: socket.socket) -> None:
        self._trace.event("connect", peer=peer, family=sock.family.name, tls=isinstance(sock, ssl.SSLSocket))
        self._mesh.adopt(peer, sock)

    def _lose(self, peer: int, why: str) -> None:
        self._trace.event("lost", peer=peer, why=why)
        self._mesh.lose(peer, why)

    def _dial(self, peer: int) -> None:
        self._switchboard.dial(peer)

    def run(self) -> None:
        for listener in self._place.listeners if self._place.link != "c10d" else ():
            self._switchboard.answer(listener)
        self._loop.watch(self._pair.fileno(), select.EPOLLIN, self._hear_trainer)
        self._place.coordinator.setblocking(False)
        self._loop.watch(self._place.coordinator.fileno(), select.EPOLLIN, self._hear_coordinator)
        if self._place.board is not None:
            threading.Thread(target=self._place.board.serve, daemon=True).start()
        while not self._over:
            self._loop.turn()
        self._switchboard.close()
        self._mesh.close()

    def _hear_trainer(self, _: int) -> None:
        try:
            raw = self._pair.recv(LONGEST)
        except ConnectionError:  # it ended with an answer unread
            raw = b""
        if not raw:
            self._loop.forget(self._pair.fileno())
            self._loop.spawn(self._end())
            return
        order = read_order(raw)
        match order:
            case Run():
                self._begin(order)
            case Memory():
                self._memory.append(Arena.open(self._trainer, order.fd, order.nbytes))
            case Use():
                self._sessions[order.group] = Session(parse(order.strategy, "strategy"))
            case Ask():
                usage = resource.getrusage(resource.RUSAGE_SELF)
                totals = self._mesh.totals()
                self._answer(
                    Counted(
                        totals.sent,
                        totals.received,
                        totals.wire_sent,
                        totals.wire_received,
                        totals.connections,
                        usage.ru_utime + usage.ru_stime,
                    )
                )
            case Finish():
                self._leaving = True
                self._loop.spawn(self._leave())

    def _begin(self, order: Run) -> None:
        link = self._mesh.link(order.number)
        task = self._loop.spawn(self._exchange(order, link))

        def ended(_: object) -> None:
            self._mesh.forget(order.number)
            if task.error is None:
                self._answer(Done(order.number))
                return
            e = task.error
            if not isinstance(e, StrettoError):
                e = StrettoError(f"agent {self._place.rank}'s courier failed: {type(e).__name__}: {e}")
            self._answer(Failed(order.number, type(e).__name__, str(e), getattr(e, "peer", -1)))

        task.then(ended)

    async def _exchange(self, order: Run, link: StreamLink) -> None:
        match order.what:
            case "mean":
                await self._sessions[order.group].mean(link, order.bucket, self._tensor(order), order.step)
            case "broadcast":
                await broadcast(link, self._tensor(order))
            case "agree":
                await agree(link, order.about, bytes(self._tensor(order).numpy()).decode())
            case "measure":
                self._mesh.network = network = await measure(link)
                self._trace.event("network", delay=network.delay, rate=network.rate)
            case "why":
                peer = int(order.about)
                raise PeerLost(self._reasons.get(peer, f"agent {peer} left"), peer)

    def _tensor(self, order: Run) -> Tensor:
        return self._memory[order.memory].tensor(order.offset, order.numel, DTYPES[order.dtype])

    def _hear_coordinator(self, _: int) -> None:
        while True:
            try:
                raw = self._place.coordinator.recv(LONGEST)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            except OSError:
                raw = b""
            if not raw:
                self._loop.forget(self._place.coordinator.fileno())
                self._break_off(-1, "the coordinator is gone")
                return
            for message in self._decoder.feed(raw):
                if isinstance(message, Lost):
                    self._break_off(message.rank, message.why)
                elif isinstance(message, Left):
                    self._part_with(message.rank)

    def _break_off(self, rank: int, why: str) -> None:
        """Whoever waits, wait no longer."""
        if self._leaving:
            return
        for peer in range(self._place.epoch.size) if rank < 0 else (rank,):
            if peer != self._place.rank:
                self._reasons[peer] = f"agent {self._place.rank} lost agent {peer}: {why}"
                self._lose(peer, why)
        if self._place.board is not None:
            self._place.board.break_off(max(rank, 0))

    def _part_with(self, rank: int) -> None:
        """An agent has done its part and left: what it sent before still counts, what it would send does not come."""
        if self._leaving:
            return
        why = "it finished and left while others went on; give all agents the same number of steps (agent.shard does)"
        self._reasons[rank] = f"agent {self._place.rank} lost agent {rank}: {why}"
        self._trace.event("left", peer=rank)
        self._loop.spawn(self._give_up(rank, why))
        if self._place.board is not None:
            self._place.board.break_off(rank)

    async def _give_up(self, rank: int, why: str) -> None:
        """A connection that it made last may still be on its way to us; its end is noticed by itself."""
        await self._loop.sleep(_LINGER / 2)
        if not self._mesh.meets(rank):
            self._mesh.lose(rank, why)

    async def _end(self) -> None:
        """The trainer is gone without a word. Gloo drops what peers have not read yet, so there they get a moment."""
        if self._place.link == "c10d":
            await self._loop.sleep(_LINGER / 2)
        self._over = True

    async def _leave(self) -> None:
        """Say goodbye, and keep reading for a moment so that closing does not reset what peers still have to read."""
        self._mesh.bye()
        try:
            self._place.coordinator.setblocking(True)
            self._place.coordinator.sendall(encode_message(Leave()))
        except OSError:
            pass
        self._answer_and_hang_up()
        until = time.monotonic() + _LINGER
        while time.monotonic() < until and self._mesh.totals().connections:
            await self._loop.sleep(0.01)
        self._over = True

    def _answer_and_hang_up(self) -> None:
        self._loop.forget(self._pair.fileno())
        self._pair.close()

    def _answer(self, answer: Answer) -> None:
        try:
            self._pair.send(encode(answer))
        except OSError:
            self._over = True
