"""The processes of a benchmark: forked from this one or started by ``mpirun``, with a barrier of no contender's.

Theory of operation. All map one piece of memory of the launcher: a futex barrier, and a row of numbers an agent, which
is how times are gathered. The first process writes what was found as JSON lines, which the launcher yields. The
launcher also has the coordinators through which they join as agents do. Whatever ends the launcher ends them: they ask
the kernel for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NoReturn, TypeAlias

import msgspec
import numpy as np
import torch

from stretto.agent import Agent
from stretto.courier import Courier
from stretto.errors import ScriptFailed
from stretto.launch.environment import Identity
from stretto.launch.join import arrive
from stretto.links.forking import fork
from stretto.links.memory import Arena, Barrier
from stretto.membership import Coordinator
from stretto.session import epoch_of

ROOM: Final = 16
"""Numbers an agent can give at once."""
_SEAT: Final = "STRETTO_BENCH_SEAT"
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None)


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is told: how many they are, where the memory is, and where its agents join."""

    size: int
    pid: int
    fd: int
    secret: str
    coordinators: dict[str, str]
    work: str
    ask: dict[str, Any]


class Team:
    """One process of the benchmark, among ``size``."""

    def __init__(self, seat: Seat, rank: int, out: int) -> None:
        self.rank, self.size = rank, seat.size
        self._seat, self._out = seat, out
        self._arena = Arena.open(seat.pid, seat.fd, Arena.rounded(_nbytes(seat.size)))
        words = Barrier.words(seat.size)
        self._barrier = Barrier(self._arena.bytes[: words * 4].numpy().view(np.int32), rank, lambda: None)
        start = _rows_at(seat.size)
        rows = self._arena.bytes[start : start + 2 * seat.size * ROOM * 8].numpy().view(np.float64)
        self._rows = rows.reshape(2, seat.size, ROOM)
        self._number = self._gathered = 0

    def barrier(self) -> None:
        self._number += 1
        self._barrier.arrive(self._number)
        self._barrier.wait(self._number)

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """What each gave, by rank, at most :data:`ROOM` numbers. All call it."""
        self._gathered += 1
        rows = self._rows[self._gathered % 2]  # the other ones may still be read
        rows[self.rank, : len(values)] = values
        self.barrier()
        return [[float(x) for x in row[: len(values)]] for row in rows]

    def tell(self, found: Any) -> None:
        """A line to the launcher; of the first process only."""
        if self.rank == 0:
            os.write(self._out, msgspec.json.encode(found) + b"\n")

    def leave_at_once(self) -> NoReturn:
        """End this process without a word to anybody but the launcher."""
        os._exit(0)

    def agent(self, name: str, link: str) -> Agent:
        """Join as a user's script does; ``name`` is one of the epochs the launcher was asked for."""
        identity = Identity(rank=self.rank, size=self.size, interface="lo")
        return Agent(arrive(identity, link, self._seat.coordinators[name], self._seat.secret))

    def courier(self, name: str, link: str) -> Courier:
        """The same without an agent around it: a courier, and the network measured as ``prepare()`` does."""
        return joined(self.rank, self.size, link, self._seat.coordinators[name], self._seat.secret)


def joined(rank: int, size: int, link: str, coordinator: str, secret: str) -> Courier:
    """The courier of agent ``rank`` of the run that ``coordinator`` calls, when all know what their network is like."""
    place = arrive(Identity(rank=rank, size=size, interface="lo"), link, coordinator, secret)
    courier, epoch = Courier(place), epoch_of(place.view).agents
    courier.settle_in(epoch, epoch.uids.index(place.seat.uid))
    courier.measure()
    return courier


Work: TypeAlias = Callable[[Team, dict[str, Any]], None]


def run(
    size: int, work: Work, ask: Mapping[str, Any], *, epochs: Sequence[str] = (), mpi: bool = False
) -> Generator[Any, None, None]:
    """Run ``work(team, ask)`` in ``size`` processes; yields what the first tells, and ends when all have ended.

    Args:
        epochs: names under which they will join as agents.
        mpi: let ``mpirun`` start them, so that they are an MPI world too.

    Raises:
        ScriptFailed: one of them failed, and has said why on standard error.
    """
    secret = secrets.token_hex(16)
    arena = Arena.create(_nbytes(size))
    with contextlib.ExitStack() as stack:
        stack.callback(arena.close)
        coordinators = {name: Coordinator(size, secret, "127.0.0.1") for name in epochs}
        seat = Seat(
            size=size,
            pid=os.getpid(),
            fd=arena.fd,
            secret=secret,
            coordinators={name: c.address for name, c in coordinators.items()},
            work=f"{work.__module__}:{work.__qualname__}",
            ask=dict(ask),
        )
        start = _by_mpi if mpi else _by_fork
        out, processes = start(seat, work)
        stack.callback(_end, processes)
        stack.callback(os.close, out)
        for coordinator in coordinators.values():
            stack.enter_context(coordinator)
        yield from _lines(out, processes)


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@cache
def why_no_mpi() -> str | None:
    """None where Open MPI can be measured; else what is missing."""
    if shutil.which("mpirun") is None:
        return "mpirun was not installed"
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py was not installed"
    return None


class _Process:
    """A child to wait for, or to kill. Calling it waits and gives its exit code."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None

    def __call__(self) -> int:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def end(self, number: signal.Signals) -> None:
        if self.code is None:
            os.kill(self.pid, number)


def _by_fork(seat: Seat, work: Work) -> tuple[int, list[_Process]]:
    out, into = os.pipe()
    torch.set_num_threads(1)
    launcher = os.getpid()
    processes: list[_Process] = []
    for rank in range(seat.size):

        def member(rank: int = rank) -> NoReturn:
            os.close(out)
            _be_member(seat, rank, into, work, launcher)

        processes.append(_Process(fork(member)))
    os.close(into)
    return out, processes


def _by_mpi(seat: Seat, work: Work) -> tuple[int, list[_Process]]:
    environ = os.environ | {
        _SEAT: msgspec.json.encode(seat).decode(),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_warn_on_fork": "0",
    }
    out, into = os.pipe()
    command = ["mpirun", "-n", str(seat.size), "--oversubscribe", "--bind-to", "none", sys.executable, "-m", __name__]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=into,
        env=environ,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509  no coordinator has started its thread yet
    )
    os.close(into)
    process.returncode = 0  # we reap it ourselves
    return out, [_Process(process.pid)]


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """From now on the kernel sends this process that signal when the one that forked it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _be_member(seat: Seat, rank: int, out: int, work: Work, parent: int) -> NoReturn:
    """The whole life of a process of the benchmark."""
    code = 1
    try:
        end_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.set_num_threads(1)
        torch.manual_seed(rank)
        team = Team(seat, rank, out)
        work(team, seat.ask)
        team.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _lines(out: int, processes: Sequence[_Process]) -> Iterator[Any]:
    """What is told, until all have ended; a process that fails ends it for all."""
    poll = select.poll()
    poll.register(out, select.POLLIN)
    running = {os.pidfd_open(p.pid): p for p in processes}
    for fd in running:
        poll.register(fd, select.POLLIN)
    rest, telling = b"", True
    try:
        while telling or running:
            for fd, _ in poll.poll():
                if fd == out:
                    data = os.read(out, 1 << 16)
                    *lines, rest = (rest + data).split(b"\n")
                    yield from map(msgspec.json.decode, lines)
                    if not data:
                        poll.unregister(out)
                        telling = False
                else:
                    poll.unregister(fd)
                    code = running.pop(fd)()
                    os.close(fd)
                    if code:
                        raise ScriptFailed(f"a process of the benchmark ended with {code}; see above what it said")
    finally:
        for fd in running:
            os.close(fd)


def _end(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.end(signal.SIGTERM if len(processes) == 1 else signal.SIGKILL)
    for process in processes:
        process()


def _rows_at(size: int) -> int:
    return -(-Barrier.words(size) * 4 // 64) * 64


def _nbytes(size: int) -> int:
    return _rows_at(size) + 2 * size * ROOM * 8


def main() -> None:
    """A process that ``mpirun`` started."""
    seat = msgspec.json.decode(os.environ.pop(_SEAT), type=Seat)
    module, _, name = seat.work.partition(":")
    work: Work = getattr(importlib.import_module(module), name)
    rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
    _be_member(seat, rank, sys.stdout.fileno(), work, os.getppid())


if __name__ == "__main__":
    main()
