"""The trainer's end: allocate shared memory, order exchanges, wait for them, and meanwhile give or take the state."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from stretto import errors
from stretto.core import Epoch, Network
from stretto.courier.desk import Desk
from stretto.courier.direct import Direct
from stretto.courier.errands import be_courier
from stretto.courier.orders import (
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
    Order,
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
    read_answer,
)
from stretto.courier.place import Place
from stretto.errors import StrettoError
from stretto.links.forking import fork
from stretto.links.memory import Arena, Board
from stretto.session import Closing, Layout
from stretto.session.rounds import What

SCRATCH: Final = 4 << 20
"""Bytes through which weights, texts and single numbers go."""

Wait = Callable[[], Closing | None]


class Keeper(Protocol):
    """Who has the state that a newcomer needs."""

    def snapshot(self, room: Callable[[int], Tensor]) -> Tensor:
        """The state, in memory (uint8) of at least its size that ``room(nbytes)`` gives."""
        ...

    def take_over(self, state: Tensor) -> None:
        """Become what ``state`` says."""
        ...

    def moved(self, closing: Closing) -> None:
        """A round that was no average ended with a new epoch."""
        ...


class Courier:
    """The trainer's end of its courier process."""

    def __init__(self, place: Place) -> None:
        self._at = place
        self._arenas: list[Arena] = []
        self._common: list[Arena] = []
        self._number = self._round = 0
        self._desk = Desk()
        self._board: Board | None = None
        self._uids: tuple[int, ...] = ()
        self._direct: Direct | None = None
        self._by_itself: set[int] = set()
        self._answers: dict[int, Done | Failed] = {}
        self._keeper: Keeper | None = None
        self._state: Tensor | None = None
        self.waited = 0.0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
        trainer = os.getpid()
        self._pid = fork(lambda: be_courier(place, theirs, trainer, self._desk))
        theirs.close()
        place.close()
        self._socket = ours
        self._hangs_up = select.poll()
        self._hangs_up.register(ours, 0)
        self.scratch = self.allocate(SCRATCH)
        self._words = self.allocate(64)

    def keep(self, keeper: Keeper) -> None:
        """From now on newcomers can be given, and we can be given, what ``keeper`` has."""
        self._keeper = keeper

    def allocate(self, nbytes: int) -> Tensor:
        """Zeroed memory (uint8) that the courier sees. All agents allocate the same, in the same order."""
        arena = self._allocate(nbytes)
        self._common.append(arena)
        if self._board is not None:
            self._board.register(self._common, self._pid)
        return arena.bytes[:nbytes]

    def allocate_own(self, nbytes: int) -> Tensor:
        """The same, of a size and at a time that are this agent's own."""
        return self._allocate(nbytes).bytes[:nbytes]

    def _allocate(self, nbytes: int) -> Arena:
        arena = Arena.create(nbytes)
        self._arenas.append(arena)
        self._tell(Memory(arena.fd, arena.nbytes))
        return arena

    def use(self, group: int, strategy: str, layouts: Sequence[Layout] = (), *, native: bool = False) -> None:
        """Average the buckets of ``group``, laid out so, by ``strategy``; ``native`` where shared memory does it.

        Without ``layouts``: as they are, by no codec.
        """
        self._tell(Use(group, strategy, tuple(layouts)))
        if native:
            self._by_itself.add(group)

    @property
    def apart(self) -> bool:
        """Do results need memory of their own?"""
        return self._at.link == "shm"

    def settle_in(self, epoch: Epoch, rank: int) -> Closing | None:
        """Where all share memory: make it the common one of this epoch. All members call it when they enter.

        The closing, where the epoch is over before that is done.
        """
        self._board, self._uids = None, epoch.uids
        if not self.apart or epoch.size == 1:
            return None
        where = self._words[:24].view(torch.int64)
        mine = Arena.create(Board.nbytes(epoch.size)) if rank == 0 else None
        if mine is not None:
            where.copy_(torch.tensor([os.getpid(), mine.fd, mine.nbytes]))
        closing = self._wait(self._run("broadcast", self._words[:24]))
        if closing is not None and (closing.epoch is not None or closing.alone):
            return closing
        arena = mine or Arena.open(*where.tolist())
        board = Board(arena, rank, epoch.size, self._is_over)
        board.register(self._common, self._pid)
        pid, fd, nbytes = where.tolist()
        self._tell(Serve(pid, fd, nbytes, rank))
        closing = self._wait(self._run("broadcast", self._words[:8]))  # everybody is registered
        if closing is not None and (closing.epoch is not None or closing.alone):
            return closing
        self._board = board
        return None

    def _is_over(self) -> bool:
        """Has our courier frozen the epoch, or ended?"""
        return self._desk.frozen or not self.lives()

    def lives(self) -> bool:
        """Is our courier there?"""
        return not self._hangs_up.poll(0)

    def mean(
        self,
        group: int,
        x: Tensor,
        out: Tensor,
        *,
        bucket: int = 0,
        of: int = 1,
        fence: bool = False,
        part: int | None = None,
    ) -> Wait:
        """Begin ``out`` = average of ``x`` (1-d, from :meth:`allocate`), one of a round's ``of`` buckets.

        ``part``: which of its group's buckets it is, where that is another number. ``out`` may be ``x``, but for
        :attr:`apart`. What is returned waits for it; one of a round's gives its closing.
        """
        part = bucket if part is None else part
        if bucket == 0:
            self._direct = None
            if self._board is not None and group in self._by_itself and self._desk.begin(self._round + 1, of, fence):
                self._direct = Direct(self._board, self._desk, self._round + 1, of, fence, self._uids, self)
        if self._direct is not None:
            wait = self._direct.submit(group, bucket, x, out, part)
        else:
            wait = self.order(group, x, out, bucket=bucket, of=of, fence=fence, part=part)
        return lambda: self._timed(wait)

    def order(self, group: int, x: Tensor, out: Tensor, *, bucket: int, of: int, fence: bool, part: int) -> Wait:
        """As :meth:`mean`, by the courier."""
        number = self._run("mean", x, group=group, bucket=bucket, of=of, fence=fence, part=part)

        def wait() -> Closing | None:
            closing = self._wait(number)
            if out is not x:
                out.copy_(x)
            return closing

        return wait

    def mix(self, group: int, x: Tensor, *, part: int, clock: int) -> Callable[[], bool]:
        """Begin to mix ``x`` (1-d, from :meth:`allocate`) in place: the ``part``-th of ``group``, at ``clock``.

        What is returned waits for it, and says whether it came about; else ``x`` is as it was.
        """
        number = self._run("mix", x, group=group, part=part, clock=clock)
        return lambda: self._timed(lambda: self._wait(number)) is None

    def hold(self, spec: bytes, layouts: Sequence[Layout], values: Sequence[Tensor]) -> None:
        """Servers hold what ``spec`` says; ``values``, by bucket, lie where :meth:`allocate` gave memory."""
        self._tell(Hold(spec, tuple(layouts), tuple(self._place(x) for x in values)))

    def push(self, weight: float, lease: int, hyper: Tensor, parts: Sequence[Sequence[Tensor]]) -> Callable[[], bool]:
        """Begin to push ``parts``, by bucket: its elements, or a table's rows and their elements.

        What is returned waits until the values are there, and says whether anybody could be reached.
        """
        self._number += 1
        number = self._number
        places = tuple(tuple(self._place(x) for x in part) for part in parts)
        self._tell(Push(number, weight, lease, tuple(hyper.tolist()), places))
        return lambda: self._timed(lambda: self._wait(number)) is None

    def inquire(self, what: str, x: Tensor, clock: int = 0) -> Callable[[], bool]:
        """Begin to ask servers ``what``; what is returned waits for it, as that of :meth:`push` does."""
        self._number += 1
        number = self._number
        self._tell(Inquire(number, what, self._place(x), clock))
        return lambda: self._timed(lambda: self._wait(number)) is None

    @property
    def held(self) -> bool:
        """Does somebody want in, at the next fence?"""
        return self._desk.held

    def passed(self, round: int) -> None:
        """The round is behind us."""
        self._round = round

    def saw(self, round: int) -> bool:
        """Had the courier seen that we passed this round when it froze the epoch?"""
        self._tell(Passed(round))
        while not isinstance(heard := self._hear(), Seen):
            self._serve(heard)
        return heard.yes

    def _timed(self, wait: Wait) -> Closing | None:
        begin = time.perf_counter()
        try:
            return wait()
        finally:
            self.waited += time.perf_counter() - begin

    def broadcast(self, x: Tensor) -> None:
        """``x`` becomes the first agent's ``x``."""
        self._collect(self._run("broadcast", x))

    def spread(self, text: str) -> str | None:
        """The first agent's ``text``, at all; None at a newcomer, who is not among them yet. 256 bytes at most."""
        x = self.scratch[:256]
        raw = text.encode()[:256].ljust(256, b"\0")
        x.copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
        closing = self._collect(self._run("broadcast", x))
        if closing is not None and closing.alone:
            return None
        return bytes(x.tolist()).rstrip(b"\0").decode()

    def agree(self, about: str, text: str, *, brings: bool = False) -> None:
        """Compare ``text`` among all agents. ``brings``: a newcomer must bring the same.

        Raises:
            Disagreement: it differs; says whose and where.
        """
        raw = text.encode()
        for at in range(0, len(raw), SCRATCH):
            part = raw[at : at + SCRATCH]
            x = self.scratch[: len(part)]
            x.copy_(torch.frombuffer(bytearray(part), dtype=torch.uint8))
            self._collect(self._run("agree", x, about=about, brings=brings))

    def measure(self) -> Network:
        """Let the agents measure their network and agree on what it is like."""
        x = self._words[32:48].view(torch.float64)
        self._collect(self._run("measure", x))
        return Network(*x.tolist())

    def assume(self, network: Network) -> None:
        """Let the agents go by what the network was like before. All call it with the same."""
        x = self._words[32:48].view(torch.float64)
        x.copy_(torch.tensor([network.delay, network.rate], dtype=torch.float64))
        self._collect(self._run("assume", x))

    def _collect(self, number: int) -> Closing | None:
        closing = self._wait(number)
        if closing is not None and closing.epoch is not None and self._keeper is not None:
            self._keeper.moved(closing)
        return closing

    def remembered(self) -> Tensor:
        """What the codecs remember between two rounds, packed (uint8)."""
        self._tell(Recall())
        while not isinstance(heard := self._hear(), Recalled):
            self._serve(heard)
        arena = Arena.open(self._pid, heard.fd, heard.nbytes)
        return arena.bytes[: heard.nbytes].clone()

    def remember(self, parts: Tensor, scale: float) -> None:
        """Let the codecs go on from what one agent, or several, remembered: a list of that (packed).

        Raises:
            DataError: it is of another strategy.
        """
        self._state = self._room(len(parts))
        self._state[: len(parts)].copy_(parts)
        self._tell(Remember(self._place(self._state[: len(parts)]), scale))
        while not isinstance(heard := self._hear(), Remembered):
            self._serve(heard)
        if heard.why:
            raise errors.DataError(heard.why)

    def counted(self) -> Counted:
        """Bytes so far."""
        self._tell(Ask())
        while True:
            heard = self._hear()
            if isinstance(heard, Counted):
                return heard

    def close(self, *, failed: bool = False) -> None:
        """Leave, and the courier process ends. The others hear that all is well, or, where it ``failed``, of a loss."""
        if not failed:
            with contextlib.suppress(OSError, StrettoError):
                self._tell(Finish())
                while self._socket.recv(LONGEST):
                    continue
        self._socket.close()
        os.waitpid(self._pid, 0)

    def _run(self, what: What, x: Tensor, **more: Any) -> int:
        self._number += 1
        self._tell(Run(self._number, what, self._place(x), round=self._round + 1, **more))
        return self._number

    def _place(self, x: Tensor) -> Extent:
        dtype = str(x.dtype).removeprefix("torch.")
        for i, arena in enumerate(self._arenas):
            offset = arena.offset_of(x)
            if offset is not None:
                return Extent(i, offset, x.numel(), dtype)
        raise errors.UsageError("a courier exchanges tensors that lie in its memory; allocate them from it")

    def _wait(self, number: int) -> Closing | None:
        while number not in self._answers:
            self._serve(self._hear())
        answer = self._answers.pop(number)
        if isinstance(answer, Failed):
            raise _as_raised(answer)
        if answer.closing is not None and not answer.closing.alone:
            self._round = answer.closing.round
        return answer.closing

    def _serve(self, answer: Answer) -> None:
        """While we wait: a newcomer needs our state, or we are one and are given it."""
        match answer:
            case Donate():
                assert self._keeper is not None
                self._state = self._keeper.snapshot(self._room)
                self._tell(Donated(self._place(self._state)))
            case MakeRoom():
                self._state = self._room(answer.nbytes)[: answer.nbytes]
                self._tell(Room(self._place(self._state)))
            case Heal():
                assert self._keeper is not None and self._state is not None
                self._keeper.take_over(self._state)
                self._tell(Healed())

    def _room(self, nbytes: int) -> Tensor:
        """Memory that has held a state before, where it suffices."""
        if self._state is None or len(self._state) < nbytes:
            return self._allocate(nbytes).bytes
        return self._state

    def _tell(self, order: Order) -> None:
        try:
            self._socket.send(encode(order))
        except OSError as e:
            raise StrettoError(f"{self._called}'s courier is gone ({e}); see its last words above") from e

    def _hear(self) -> Answer:
        try:
            raw = self._socket.recv(LONGEST)
        except ConnectionResetError:
            raw = b""
        if not raw:
            raise StrettoError(f"{self._called}'s courier ended without a word; was it killed?")
        answer: Answer = read_answer(raw)
        if isinstance(answer, Done | Failed):
            self._answers[answer.number] = answer
        return answer

    @property
    def _called(self) -> str:
        return f"agent {self._at.seat.label}"


def _as_raised(failed: Failed) -> StrettoError:
    """The courier's error, of its own kind, whatever that kind's constructor takes."""
    kind = getattr(errors, failed.error, StrettoError)
    error: StrettoError = kind.__new__(kind)
    error.args = (failed.message,)
    return error
