"""The trainer's end: allocate shared memory, order exchanges, wait for them."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from stretto import errors
from stretto.courier.errands import be_courier
from stretto.courier.orders import (
    LONGEST,
    Answer,
    Ask,
    Counted,
    Done,
    Failed,
    Finish,
    Memory,
    Order,
    Run,
    Use,
    encode,
    read_answer,
)
from stretto.courier.place import Place
from stretto.errors import PeerLost, StrettoError
from stretto.links.memory import Arena, Board, Ticket

SCRATCH: Final = 4 << 20
"""Bytes through which weights, texts and single numbers go."""


class Courier:
    """The trainer's end: allocate shared memory, order exchanges, wait for them."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._arenas: list[Arena] = []
        self._number = 0
        self._answers: dict[int, Done | Failed] = {}
        self._native: set[int] = set()
        self.waited = 0.0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        trainer = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            be_courier(place, theirs, trainer)
        theirs.close()
        for sock in (place.coordinator, *place.listeners):
            sock.close()
        self._socket = ours
        self.scratch = self.allocate(SCRATCH)

    def allocate(self, nbytes: int) -> Tensor:
        """Zeroed memory (uint8) that the courier sees. Where agents share memory it is collective, in one order."""
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
        if e.peer == self._place.rank:
            return e
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
            raise _as_raised(answer)

    def _tell(self, order: Order) -> None:
        try:
            self._socket.send(encode(order))
        except OSError as e:
            raise StrettoError(f"agent {self._place.rank}'s courier is gone ({e}); see its last words above") from e

    def _hear(self) -> Answer:
        try:
            raw = self._socket.recv(LONGEST)
        except ConnectionResetError:
            raw = b""
        if not raw:
            raise StrettoError(f"agent {self._place.rank}'s courier ended without a word; was it killed?")
        answer: Answer = read_answer(raw)
        if not isinstance(answer, Counted):
            self._answers[answer.number] = answer
        return answer


def _as_raised(failed: Failed) -> StrettoError:
    """The courier's error, of its own kind, whatever that kind's constructor takes."""
    kind = getattr(errors, failed.error, StrettoError)
    error: StrettoError = kind.__new__(kind)
    error.args = (failed.message,)
    if isinstance(error, PeerLost):
        error.peer = failed.peer
    return error
