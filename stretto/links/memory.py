"""Memory shared by the processes of one host: arenas, futexes, and an all-reduce done in place.

Theory of operation. Every agent keeps its gradients in an :class:`Arena`, memory without a name that its courier and
its neighbours map through ``/proc/PID/fd``. One more such piece is the :class:`Board`: a cell per agent that only its
owner writes, and a bell, a futex that whoever arrives last rings for all. No atomic instruction is needed and nobody
is woken in vain, so a barrier costs one wake-up an agent.

* A small tensor is copied to its owner's slot on the board; when all have arrived each agent adds all slots up
  itself. One wake-up, no courier.
* A large one stays where it is. When all have arrived, each courier adds up its own share of everybody's memory, in
  the order of ranks, scales it, and writes it to everybody's result, piece by piece so that the pieces stay in cache;
  then all arrive once more.

Both add in the order of ranks, so every agent has the same bits, and the same as a star rooted at agent 0. Inputs are
not written: when an agent dies in the middle, the others still have all that they need to do it again without it. A
board belongs to one epoch; :meth:`Board.freeze` ends it, and what was finished then stays readable.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stretto.errors import PeerLost, UsageError

SMALL = 64 << 10
PIECE = 128 << 10
_LINE = 64
_SLOTS = 8
_AHEAD = _SLOTS // 2
_ORDERS = 64
_ARENAS = 32
_RECHECK = 0.25

_dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Arena:
    """A piece of anonymous memory that other processes of this user can map, by (pid, descriptor)."""

    def __init__(self, fd: int, nbytes: int) -> None:
        self.fd, self.nbytes = fd, nbytes
        self._map = mmap.mmap(fd, nbytes)
        self.bytes: Tensor = torch.frombuffer(self._map, dtype=torch.uint8)
        self.address = self.bytes.data_ptr()

    @staticmethod
    def rounded(nbytes: int) -> int:
        return -(-max(nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE

    @classmethod
    def create(cls, nbytes: int) -> Arena:
        """New zeroed memory, rounded up to whole pages."""
        nbytes = cls.rounded(nbytes)
        fd = os.memfd_create("stretto", os.MFD_CLOEXEC)
        os.ftruncate(fd, nbytes)
        return cls(fd, nbytes)

    @classmethod
    def open(cls, pid: int, fd: int, nbytes: int) -> Arena:
        """Map what another process of this user created."""
        try:
            mine = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as e:
            raise UsageError(
                f"cannot map the shared memory of process {pid}: {e}; agents that share memory "
                "need one user and one /proc: use --link tcp"
            ) from e
        arena = cls(mine, nbytes)
        arena.close()
        return arena

    def tensor(self, offset: int, numel: int, dtype: torch.dtype) -> Tensor:
        """``numel`` elements at byte ``offset``, shared."""
        return self.bytes[offset : offset + numel * dtype.itemsize].view(dtype)

    def close(self) -> None:
        """Give the descriptor back; memory that tensors still use stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def offset_of(self, x: Tensor) -> int | None:
        """Where in this arena ``x`` begins, or None."""
        at = x.data_ptr() - self.address
        return at if 0 <= at <= self.nbytes - x.numel() * x.element_size() else None


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), -1)
_WAIT, _WAKE = 0, 1
_libc = ctypes.CDLL(None, use_errno=True)
_pause = _Timespec(int(_RECHECK), int(_RECHECK % 1 * 1e9))


def _futex(address: int, operation: int, value: int, timeout: _Timespec | None = None) -> None:
    if _FUTEX < 0:
        raise UsageError(f"shared memory is not supported on {platform.machine()}; use --link tcp")
    _libc.syscall(
        _FUTEX, ctypes.c_void_p(address), operation, ctypes.c_uint(value), ctypes.byref(timeout) if timeout else None
    )


class Barrier:
    """Numbered arrivals of ``size`` agents: cells that only their owners write, and a bell."""

    def __init__(self, words: np.ndarray, rank: int, lost: Callable[[], PeerLost | None]) -> None:
        stride = _LINE // 4
        self._bell = words[0:1]
        self._address = self._bell.ctypes.data
        self._cells = words[stride::stride]
        self._mine = self._cells[rank : rank + 1]
        self._fence = threading.Lock()
        self._lost = lost

    @staticmethod
    def words(size: int) -> int:
        """32-bit words a barrier of ``size`` agents takes."""
        return (size + 1) * _LINE // 4

    def arrive(self, number: int) -> None:
        """Say that this agent has reached ``number``; the last one to say so wakes the others."""
        self._mine[0] = number
        with self._fence:  # orders our write before our reads: of two last arrivers, one sees all
            pass
        if int(self._cells.min()) >= number:
            self.ring(number)

    def ring(self, number: int) -> None:
        self._bell[0] = number
        _futex(self._address, _WAKE, 1 << 30)

    def wake(self) -> None:
        _futex(self._address, _WAKE, 1 << 30)

    def complete(self, number: int) -> bool:
        """Have all reached ``number``?"""
        return int(self._cells.min()) >= number

    def wait(self, number: int) -> None:
        """Until all have reached ``number``.

        Raises:
            PeerLost: an agent left; it will not come.
        """
        while (value := int(self._bell[0])) < number:
            lost = self._lost()  # asked first: who left had arrived before
            if int(self._cells.min()) >= number:
                return
            if lost is not None:
                raise lost
            _futex(self._address, _WAIT, value, _pause)


@dataclass(frozen=True, slots=True)
class Ticket:
    """An all-reduce under way."""

    large: bool
    number: int


class Board:
    """What the agents of one host share: barriers, slots for small tensors, and orders for large ones.

    Created by the first agent, mapped by the others; used by each agent's trainer (``submit``, ``wait``) and courier
    (``serve``).
    """

    def __init__(self, arena: Arena, rank: int, size: int, ended: Callable[[], bool] = lambda: False) -> None:
        """``ended()``: has another process of this agent frozen the epoch?"""
        self.arena, self.rank, self.size = arena, rank, size
        at = 0

        def take(nbytes: int, dtype: type[np.generic]) -> np.ndarray:
            nonlocal at
            start, at = at, at + -(-nbytes // _LINE) * _LINE
            return arena.bytes[start : start + nbytes].numpy().view(dtype)

        words = Barrier.words(size)
        self._small, self._large, self._done = (Barrier(take(words * 4, np.int32), rank, self.lost) for _ in range(3))
        self._pids = take(size * 8, np.int64)
        self._table = take(size * _ARENAS * 24, np.int64).reshape(size, _ARENAS, 3)
        self._orders = take(size * _ORDERS * 56, np.int64).reshape(size, _ORDERS, 7)
        self._slots = torch.from_numpy(take(size * _SLOTS * SMALL, np.uint8)).view(size, _SLOTS, SMALL)
        self._arenas: list[Arena] = []
        self._views: dict[int, list[Arena]] = {}
        self._numbers = [0, 0]
        self._unread: dict[int, tuple[Tensor, float]] = {}
        self._frozen = False
        self._serving: threading.Thread | None = None
        self._ended = ended

    @staticmethod
    def nbytes(size: int) -> int:
        return 3 * Barrier.words(size) * 4 + size * (_ARENAS * 24 + _ORDERS * 56 + _SLOTS * SMALL + 8) + 10 * _LINE

    def freeze(self) -> None:
        """Nothing is begun on this board any more: whoever waits on it learns that now, and our share is not served."""
        self._frozen = True
        for barrier in (self._small, self._large, self._done):
            barrier.wake()
        if self._serving is not None and self._serving is not threading.current_thread():
            self._serving.join()

    def lost(self) -> PeerLost | None:
        """Why a wait on this board is over before its time."""
        return PeerLost(f"the epoch of agent {self.rank} is over") if self._frozen or self._ended() else None

    def courier_of(self, rank: int) -> int:
        """The process that writes into everybody's memory for this agent; 0 before it may."""
        return int(self._pids[rank])

    def register(self, arenas: Sequence[Arena], courier: int = 0) -> None:
        """Our memory, in the order in which all register theirs, before they use it; process ``courier`` will serve it.

        Raises:
            UsageError: these are more pieces than a board has room for.
        """
        self._pids[self.rank] = courier
        if len(arenas) > _ARENAS:
            raise UsageError(f"more than {_ARENAS} models in one run; prepare them in one call")
        for number, arena in enumerate(arenas):
            self._table[self.rank, number] = (os.getpid(), arena.fd, arena.nbytes)
        self._arenas = list(arenas)

    def submit(self, x: Tensor, out: Tensor, scale: float) -> Ticket:
        """Begin ``out = scale * sum over agents of x`` (1-d, in registered memory), in the same order everywhere."""
        nbytes = x.numel() * x.element_size()
        large = nbytes > SMALL
        number = self._numbers[large] = self._numbers[large] + 1
        if large:
            if number > _ORDERS - 8:
                self._done.wait(number - (_ORDERS - 8))
            self._orders[self.rank, number % _ORDERS] = (
                *self._locate(x),
                x.numel(),
                _dtypes.index(x.dtype),
                np.float64(scale).view(np.int64),
                *self._locate(out),
            )
            self._large.arrive(number)
        else:
            self._read(number - _AHEAD)
            self._slots[self.rank, number % _SLOTS, :nbytes] = x.view(torch.uint8)
            self._unread[number] = (out, scale)
            self._small.arrive(number)
        return Ticket(large, number)

    def wait(self, ticket: Ticket) -> None:
        """Until the result of ``ticket`` is there.

        Raises:
            PeerLost: the epoch ended before.
        """
        if ticket.large:
            self._done.wait(ticket.number)
        else:
            self._read(ticket.number)

    def finished(self, ticket: Ticket) -> bool:
        """Have all done their part of it?"""
        return (self._done if ticket.large else self._small).complete(ticket.number)

    def result(self, ticket: Ticket, like: Tensor) -> Tensor:
        """The mean of a finished one, on a board that is frozen: in ``like``, or where a large one lies."""
        if not ticket.large:
            self._sum(ticket.number, like, 1.0 / self.size)
            return like
        *_, where, offset = self._orders[self.rank, ticket.number % _ORDERS].tolist()
        return self._everyone(where)[self.rank].tensor(offset, like.numel(), like.dtype)

    def _read(self, number: int) -> None:
        waiting = self._unread.pop(number, None)
        if waiting is not None:
            self._small.wait(number)
            self._sum(number, *waiting)

    def _sum(self, number: int, out: Tensor, scale: float) -> None:
        slots = self._slots[:, number % _SLOTS, : out.numel() * out.element_size()]
        parts = [s.view(out.dtype) for s in slots.unbind()]
        if self.size == 1:
            torch.mul(parts[0], scale, out=out)
            return
        torch.add(parts[0], parts[1], out=out)
        for part in parts[2:]:
            out.add_(part)
        out.mul_(scale)

    def _locate(self, x: Tensor) -> tuple[int, int]:
        for i, arena in enumerate(self._arenas):
            offset = arena.offset_of(x)
            if offset is not None:
                return i, offset
        raise UsageError("an all-reduce in shared memory needs a tensor that lies in it; allocate it from the board")

    def serve(self) -> None:
        """The courier's part, in a thread: reduce one share of every large tensor, until the board is frozen."""
        self._serving = threading.Thread(target=self._serve, daemon=True)
        self._serving.start()

    def _serve(self) -> None:
        number = 0
        while True:
            number += 1
            try:
                self._large.wait(number)
                self._reduce(number)
            except PeerLost:
                return
            self._done.arrive(number)

    def _reduce(self, number: int) -> None:
        row = self._orders[self.rank, number % _ORDERS].tolist()
        where, offset, numel, code, scale, out_where, out_offset = row
        dtype = _dtypes[code]
        everyone = [a.tensor(offset, numel, dtype) for a in self._everyone(where)]
        results = [a.tensor(out_offset, numel, dtype) for a in self._everyone(out_where)]
        factor = float(np.int64(scale).view(np.float64))
        share = -(-numel // self.size)
        first, last = min(self.rank * share, numel), min((self.rank + 1) * share, numel)
        piece = PIECE // dtype.itemsize
        total = torch.empty(min(piece, max(last - first, 1)), dtype=dtype)
        for a in range(first, last, piece):
            if self._frozen:
                raise PeerLost(f"the epoch of agent {self.rank} is over")
            b = min(a + piece, last)
            out = total[: b - a]
            torch.add(everyone[0][a:b], everyone[1][a:b], out=out)
            for x in everyone[2:]:
                out.add_(x[a:b])
            for y in results:
                torch.mul(out, factor, out=y[a:b])

    def _everyone(self, where: int) -> list[Arena]:
        if where not in self._views:
            self._views[where] = [Arena.open(*(int(v) for v in self._table[r, where])) for r in range(self.size)]
        return self._views[where]
