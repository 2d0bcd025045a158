"""The courier: a process beside the trainer that owns its connections and runs its exchanges.

Theory of operation. Python code in the trainer (decoding, tokenising, an environment) holds the interpreter's lock, and a thread that
moves bytes beside it starves. So :class:`Courier` forks at the start. Gradients lie in memory both map; the trainer writes
one order on a socket pair ("bucket 3 of step 12 lies there") and reads one answer. The courier turns an order into a coroutine over
its :class:`~stretto.links.stream.Mesh` and goes on with others meanwhile. When the trainer ends, for whatever reason, the courier
sees the pair close, tells the others, and ends too. Where all agents share memory, averages skip the socket pair: see
:mod:`stretto.links.memory`.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec
import torch
from torch import Tensor

from stretto import errors
from stretto.core import Epoch, Network
from stretto.errors import NetworkError, PeerLost, StrettoError
from stretto.exchanges import agree, broadcast, measure
from stretto.links.connect import Switchboard
from stretto.links.loop import Loop
from stretto.links.memory import Arena, Board, Ticket
from stretto.links.channel import StreamLink
from stretto.links.mesh import Mesh
from stretto.links.tls import make_certificate
from stretto.membership.messages import LONGEST_ANSWER, Decoder, Leave, Lost, encode
from stretto.session import Session
from stretto.text import parse

_ORDER_BYTES = 64 << 10
_LINGER = 1.0
SCRATCH = 4 << 20
"""Bytes through which weights, texts and single numbers go."""


class Memory(msgspec.Struct, tag=True, frozen=True):
    """Map this memory of the trainer."""

    fd: int
    nbytes: int


class Use(msgspec.Struct, tag=True, frozen=True):
    """Group ``group`` of buckets is exchanged by this strategy."""

    group: int
    strategy: str


class Run(msgspec.Struct, tag=True, frozen=True):
    """Run exchange ``what`` on a piece of memory; ``number`` is the same at every agent."""

    number: int
    what: str
    memory: int
    offset: int
    numel: int
    dtype: str
    group: int = 0
    bucket: int = 0
    step: int = 0
    about: str = ""


class Ask(msgspec.Struct, tag=True, frozen=True):
    """Tell how many bytes have gone and come."""


class Finish(msgspec.Struct, tag=True, frozen=True):
    """The trainer leaves on purpose."""


class Done(msgspec.Struct, tag=True, frozen=True):
    number: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    number: int
    error: str
    message: str
    peer: int = -1


class Counted(msgspec.Struct, tag=True, frozen=True):
    sent: int
    received: int
    wire_sent: int
    wire_received: int
    connections: int
    cpu_seconds: float


_Order = Memory | Use | Run | Ask | Finish
_Answer = Done | Failed | Counted
_encode = msgspec.msgpack.Encoder().encode
_orders = msgspec.msgpack.Decoder(_Order)
_answers = msgspec.msgpack.Decoder(_Answer)
_dtypes = {
    str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)
}


@dataclass(frozen=True)
class Place:
    """Everything a courier needs to know of the epoch it serves."""

    rank: int
    epoch: Epoch
    network: Network
    secret: str
    coordinator: socket.socket
    listeners: tuple[socket.socket, ...]
    board: Board | None = None


class Courier:
    """The trainer's end: allocate shared memory, order exchanges, wait for them."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._arenas: list[Arena] = []
        self._number = 0
        self._answers: dict[int, Done | Failed] = {}
        self._counted: Counted | None = None
        self._native: set[int] = set()
        self.waited = 0.0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        trainer = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _be_courier(place, theirs, trainer)
        theirs.close()
        for sock in (place.coordinator, *place.listeners):
            sock.close()
        self._socket = ours
        self.scratch = self.allocate(SCRATCH)

    def allocate(self, nbytes: int) -> Tensor:
        """Zeroed memory (uint8) that the courier sees. With shared memory between agents: collective, in the same order."""
        board = self._place.board
        arena = board.allocate(nbytes) if board is not None else Arena.create(nbytes)
        self._arenas.append(arena)
        self._tell(Memory(arena.fd, arena.nbytes))
        return arena.bytes[:nbytes]

    def use(self, group: int, strategy: str, *, native: bool) -> None:
        """Average the buckets of ``group`` by ``strategy``; ``native`` where shared memory does it."""
        self._tell(Use(group, strategy))
        if native:
            self._native.add(group)

    def mean(self, group: int, bucket: int, step: int, x: Tensor) -> Callable[[], None]:
        """Begin the average of ``x`` (1-d, from :meth:`allocate`); what is returned waits for it."""
        board = self._place.board
        if board is not None and group in self._native:
            ticket = board.submit(x, 1.0 / self._place.epoch.size)
            return lambda: self._timed(lambda: self._board_wait(board, ticket))
        number = self._run("mean", x, group=group, bucket=bucket, step=step)
        return lambda: self._timed(lambda: self._wait(number))

    def broadcast(self, x: Tensor) -> None:
        """``x`` becomes agent 0's ``x``."""
        self._wait(self._run("broadcast", x))

    def agree(self, about: str, text: str) -> None:
        """Compare ``text`` among all agents.

        Raises:
            Disagreement: it differs; says whose and where.
        """
        raw = text.encode()
        for at in range(0, len(raw), SCRATCH):
            part = raw[at : at + SCRATCH]
            x = self.scratch[: len(part)]
            x.copy_(torch.frombuffer(bytearray(part), dtype=torch.uint8))
            self._wait(self._run("agree", x, about=about))

    def measure(self) -> None:
        """Let the agents measure their network and agree on what it is like."""
        self._wait(self._run("measure", self.scratch[:1]))

    def counted(self) -> Counted:
        """Bytes so far."""
        self._tell(Ask())
        self._counted = None
        while self._counted is None:
            self._hear()
        return self._counted

    def close(self) -> None:
        """Leave: the others are told, and the courier process ends."""
        try:
            self._tell(Finish())
            while self._socket.recv(_ORDER_BYTES):
                pass
        except (OSError, StrettoError):
            pass
        self._socket.close()
        os.waitpid(self._pid, 0)

    def _timed(self, wait: Callable[[], None]) -> None:
        begin = time.perf_counter()
        try:
            wait()
        finally:
            self.waited += time.perf_counter() - begin

    def _board_wait(self, board: Board, ticket: Ticket) -> None:
        try:
            board.wait(ticket)
        except PeerLost as e:
            raise self._explained(e) from None

    def _explained(self, e: PeerLost) -> PeerLost:
        """The courier knows why it left; ask."""
        number = self._run("why", torch.empty(0), about=str(e.peer))
        try:
            self._wait(number)
        except PeerLost as told:
            return told
        return e

    def _run(self, what: str, x: Tensor, **more: Any) -> int:
        self._number += 1
        memory, offset = self._locate(x) if x.numel() else (0, 0)
        dtype = str(x.dtype).removeprefix("torch.")
        self._tell(Run(self._number, what, memory, offset, x.numel(), dtype, **more))
        return self._number

    def _locate(self, x: Tensor) -> tuple[int, int]:
        for i, arena in enumerate(self._arenas):
            offset = arena.offset_of(x)
            if offset is not None:
                return i, offset
        raise errors.UsageError("a courier exchanges tensors that lie in its memory; allocate them from it")

    def _wait(self, number: int) -> None:
        while number not in self._answers:
            self._hear()
        answer = self._answers.pop(number)
        if isinstance(answer, Failed):
            kind = getattr(errors, answer.error, StrettoError)
            raise PeerLost(answer.message, answer.peer) if kind is PeerLost else kind(answer.message)

    def _tell(self, order: _Order) -> None:
        try:
            self._socket.send(_encode(order))
        except OSError as e:
            raise StrettoError(f"agent {self._place.rank}'s courier is gone ({e}); see its last words above") from e

    def _hear(self) -> None:
        raw = self._socket.recv(_ORDER_BYTES)
        if not raw:
            raise StrettoError(f"agent {self._place.rank}'s courier ended without a word; was it killed?")
        answer = _answers.decode(raw)
        if isinstance(answer, Counted):
            self._counted = answer
        else:
            self._answers[answer.number] = answer


def _be_courier(place: Place, pair: socket.socket, trainer: int) -> NoReturn:
    """The child's whole life."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _close_others({0, 1, 2, pair.fileno(), place.coordinator.fileno(), *(s.fileno() for s in place.listeners)})
        torch.set_num_threads(1)
        _Errands(place, pair, trainer).run()
        code = 0
    except BaseException:
        import traceback

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
    """The courier process: orders in, coroutines over the mesh, answers out."""

    def __init__(self, place: Place, pair: socket.socket, trainer: int) -> None:
        self._place, self._pair, self._trainer = place, pair, trainer
        self._loop = Loop()
        self._mesh = Mesh(self._loop, place.rank, place.epoch, lambda peer: self._switchboard.dial(peer))
        self._mesh.network = place.network
        self._switchboard = Switchboard(
            self._loop,
            place.rank,
            place.epoch.number,
            place.epoch.members,
            place.secret,
            make_certificate(),
            unix=place.board is not None,
            adopt=self._mesh.adopt,
            lose=self._mesh.lose,
        )
        self._decoder = Decoder(LONGEST_ANSWER)
        self._memory: list[Arena] = []
        self._sessions: dict[int, Session] = {}
        self._running = 0
        self._leaving = False
        self._over = False
        self._reasons: dict[int, str] = {}

    def run(self) -> None:
        for listener in self._place.listeners:
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
        raw = self._pair.recv(_ORDER_BYTES)
        if not raw:
            self._over = True
            return
        order = _orders.decode(raw)
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
                self._mesh.network = await measure(link)
            case "why":
                peer = int(order.about)
                raise PeerLost(self._reasons.get(peer, f"agent {peer} left"), peer)

    def _tensor(self, order: Run) -> Tensor:
        return self._memory[order.memory].tensor(order.offset, order.numel, _dtypes[order.dtype])

    def _hear_coordinator(self, _: int) -> None:
        while True:
            try:
                raw = self._place.coordinator.recv(_ORDER_BYTES)
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

    def _break_off(self, rank: int, why: str) -> None:
        """Whoever waits, wait no longer."""
        if self._leaving:
            return
        for peer in range(self._place.epoch.size) if rank < 0 else (rank,):
            if peer != self._place.rank:
                self._reasons[peer] = f"agent {self._place.rank} lost agent {peer}: {why}"
                self._mesh.lose(peer, why)
        if self._place.board is not None:
            self._place.board.break_off(max(rank, 0))

    async def _leave(self) -> None:
        """Say goodbye, and keep reading for a moment so that closing does not reset what peers still have to read."""
        self._mesh.bye()
        try:
            self._place.coordinator.setblocking(True)
            self._place.coordinator.sendall(encode(Leave()))
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

    def _answer(self, answer: _Answer) -> None:
        try:
            self._pair.send(_encode(answer))
        except OSError:
            self._over = True
