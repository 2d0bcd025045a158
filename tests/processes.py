"""Real agents for tests: each a forked process with the real rendezvous, courier and link; none outlives its call.

    agents(4, train, steps, link="shm")     # train(agent, steps) in each; what it returns, by rank

    with running(4, train, folder=tmp_path) as run:     # train(agent, life): some die, are stopped, come again
        run.lives[2].wait("commit", round=9)
        run.lives[2].signal(signal.SIGKILL)
        run.start(2)
        results = run.results()

Each agent leads a process group, which its courier is in too; whoever is still there at the deadline writes its stack,
is killed, and is named.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import psutil
import pytest
import torch

from stretto import errors
from stretto.errors import PeerLost
from stretto.launch.join import join
from stretto.links.forking import fork
from stretto.membership import Coordinator
from stretto.trace import read

SECRET = "a secret of the tests"
DEADLINE = 25.0
"""Seconds until what has not come will not come."""


@dataclass(frozen=True, slots=True)
class Died:
    """An agent that ended without a result: by this signal, or with this exit code."""

    signal: int = 0
    code: int = 0


@dataclass(slots=True)
class _Child:
    rank: int
    pid: int
    pipe: int
    raw: bytearray = field(default_factory=bytearray)
    status: int | None = None


def agents(
    size: int,
    function: Callable[..., Any],
    *args: Any,
    link: str = "tcp",
    deadline: float = DEADLINE,
    keep_errors: bool = False,
    environ: Mapping[str, str] | None = None,
) -> list[Any]:
    """``function(agent, *args)`` in ``size`` processes; what each returned (of msgpack's types), by rank.

    The first error by rank is raised, one that is no consequence of another's if there is one; with ``keep_errors``
    errors, and :class:`Died`, are results too. An agent that does not end within ``deadline`` seconds fails the test.
    """
    _warm_up()
    coordinator = Coordinator(size, SECRET, "127.0.0.1")
    children: list[_Child] = []
    try:
        for rank in range(size):
            env = _environ(coordinator.address, rank, size) | {"STRETTO_LINK": link} | dict(environ or {})
            children.append(_fork(rank, env, function, args))
        coordinator.start()
        hung = _collect(children, time.monotonic() + deadline)
    finally:
        _kill(children)
        coordinator.close()
    if hung:
        pytest.fail(f"agents {hung} did not end within {deadline:g} s (link {link}); their stacks are in stderr")
    results = [_result(child) for child in children]
    failed = [r for r in results if isinstance(r, BaseException | Died)]
    if failed and not keep_errors:
        first = min(failed, key=lambda r: isinstance(r, PeerLost))
        if isinstance(first, BaseException):
            first.add_note(f"by rank: {results}")
        raise first if isinstance(first, BaseException) else AssertionError(f"agents ended without a word: {results}")
    return results


class Life:
    """One process life of an agent of a :class:`Run`, as its trace tells it."""

    def __init__(self, child: _Child, trace: Path) -> None:
        self.child, self.trace = child, trace

    def events(self, name: str) -> list[dict[str, Any]]:
        found = read(self.trace) if self.trace.exists() else ()
        return [event for event in found if event["event"] == name]

    def wait(self, name: str, **fields: Any) -> dict[str, Any]:
        """The first such event; at a deadline the test fails."""
        ends = time.monotonic() + DEADLINE
        while time.monotonic() < ends:
            for event in self.events(name):
                if fields.items() <= event.items():
                    return event
            time.sleep(0.005)
        _show_stacks([self.child])
        pytest.fail(f"agent {self.child.rank} told no {name} {fields} in {DEADLINE:g} s; {self._told()}")

    def _told(self) -> str:
        return f"it told {[e['event'] for e in read(self.trace)]}" if self.trace.exists() else "it told nothing"

    def signal(self, number: signal.Signals) -> None:
        """To the trainer and its courier."""
        os.killpg(self.child.pid, number)


class Run:
    """Agents of one run, as they come: ``lives`` in the order of their starts."""

    def __init__(
        self, size: int, function: Callable[..., Any], args: Sequence[Any], folder: Path, env: Mapping[str, str]
    ) -> None:
        self.lives: list[Life] = []
        self._size, self._function, self._args, self._folder, self._env = size, function, args, folder, env
        reading, writing = os.pipe()
        self._words = folder / "coordinator.txt"
        self.coordinator = _fork_coordinator(size, writing, int(env.get("STRETTO_MIN_AGENTS", 0)) or None, self._words)
        os.close(writing)
        self._address = os.read(reading, 100).decode()
        os.close(reading)
        assert self._address, "the coordinator did not begin"

    def start(self, label: int) -> Life:
        """Start agent ``label``, or start it again."""
        number = len(self.lives)
        trace = self._folder / f"{number}.jsonl"
        env = _environ(self._address, label, self._size) | {"STRETTO_TRACE": str(trace)} | dict(self._env)
        life = sum(other.child.rank == label for other in self.lives)
        self.lives.append(Life(_fork(label, env, self._function, (life, *self._args)), trace))
        return self.lives[-1]

    def hears(self, words: str) -> str:
        """The first line of the coordinator with these words in it."""
        ends = time.monotonic() + DEADLINE
        while time.monotonic() < ends:
            for line in self._words.read_text().splitlines() if self._words.exists() else ():
                if words in line:
                    return line
            time.sleep(0.005)
        pytest.fail(f"the coordinator did not say {words!r} in {DEADLINE:g} s")

    def kill_coordinator(self) -> None:
        """And forget it: once only."""
        if self.coordinator:
            os.kill(self.coordinator, signal.SIGKILL)
            os.waitpid(self.coordinator, 0)
            self.coordinator = 0

    def results(self) -> list[Any]:
        """What every life returned, once all have ended; errors, and :class:`Died`, are results too."""
        children = [life.child for life in self.lives]
        hung = _collect(children, time.monotonic() + DEADLINE)
        if hung:
            pytest.fail(f"agents {hung} did not end within {DEADLINE:g} s; their stacks are in stderr")
        return [_result(child) for child in children]

    def close(self) -> None:
        _kill([life.child for life in self.lives])
        self.kill_coordinator()


@contextmanager
def running(
    size: int,
    function: Callable[..., Any],
    *args: Any,
    folder: Path,
    link: str = "tcp",
    environ: Mapping[str, str] | None = None,
) -> Iterator[Run]:
    """A run of ``function(agent, life, *args)``, all ``size`` agents started; ``life`` counts each one's starts."""
    _warm_up()
    run = Run(size, function, args, folder, {"STRETTO_LINK": link, **(environ or {})})
    try:
        for label in range(size):
            run.start(label)
        yield run
    finally:
        run.close()


def _fork_coordinator(size: int, told: int, min_agents: int | None, words: Path) -> int:
    """A coordinator in a process of its own, which writes its address to ``told``; its pid."""

    def be() -> NoReturn:
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            gc.freeze()
            say = partial(print, file=words.open("w"), flush=True)
            with Coordinator(size, SECRET, "127.0.0.1", say=say, min_agents=min_agents) as coordinator:
                os.write(told, coordinator.address.encode())
                signal.pause()
        finally:
            os._exit(1)

    return fork(be)


def _environ(address: str, label: int, size: int) -> dict[str, str]:
    return {
        "STRETTO_COORDINATOR": address,
        "STRETTO_RANK": str(label),
        "STRETTO_SIZE": str(size),
        "STRETTO_SECRET": SECRET,
    }


@cache
def _warm_up() -> None:
    """What torch imports at the first optimizer takes a second: once here rather than in every agent."""
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)


def _fork(rank: int, env: Mapping[str, str], function: Callable[..., Any], args: Sequence[Any]) -> _Child:
    reading, writing = os.pipe()
    pid = fork(lambda: _live(env, writing, function, args))
    os.close(writing)
    return _Child(rank, pid, reading)


def _live(env: Mapping[str, str], pipe: int, function: Callable[..., Any], args: Sequence[Any]) -> NoReturn:
    """The whole life of one agent's process."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.freeze()  # what pytest has opened is closed below, and must not be closed again when it is collected
        os.closerange(3, pipe)
        os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 65536 else 65536)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        faulthandler.register(signal.SIGUSR1, sys.stderr, chain=False)
        torch.set_num_threads(1)
        torch.manual_seed(0)
        answer: tuple[Any, ...]
        try:
            with join(environ=env) as agent:
                answer = ("ok", function(agent, *args))
        except Exception as e:
            answer = ("error", type(e).__name__, str(e), getattr(e, "peer", -1))
        with os.fdopen(pipe, "wb") as out:
            out.write(msgspec.msgpack.encode(answer))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _collect(children: Sequence[_Child], ends: float) -> list[int]:
    """Read every pipe to its end, and await every process; the ranks of those that are late."""
    open_ = {child.pipe: child for child in children}
    while open_ and time.monotonic() < ends:
        for pipe in select.select(list(open_), [], [], 0.2)[0]:
            data = os.read(pipe, 1 << 20)
            if data:
                open_[pipe].raw += data
            else:
                os.close(pipe)
                del open_[pipe]
    while time.monotonic() < ends and not all(_over(child) for child in children):
        time.sleep(0.005)
    hung = [child.rank for child in children if not _over(child)]
    for pipe in open_:
        os.close(pipe)
    if hung:
        _show_stacks(children)
    return hung


def _over(child: _Child) -> bool:
    """Whether the agent and everything it started have ended; its courier may take a moment longer than itself."""
    if child.status is None:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid:
            child.status = status
    return child.status is not None and not in_group(child.pid)


def in_group(group: int) -> list[psutil.Process]:
    """Living processes of a process group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return []
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _show_stacks(children: Sequence[_Child]) -> None:
    for child in children:
        for process in in_group(child.pid):
            print(f"-- agent {child.rank}, process {process.pid}:", file=sys.stderr, flush=True)
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.2)


def _kill(children: Sequence[_Child]) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        if child.status is None:
            _, child.status = os.waitpid(child.pid, 0)


def _result(child: _Child) -> Any:
    assert child.status is not None
    if not child.raw:
        return Died(os.WTERMSIG(child.status) if os.WIFSIGNALED(child.status) else 0, child.status >> 8)
    kind, *rest = msgspec.msgpack.decode(bytes(child.raw))
    if kind == "ok":
        return rest[0]
    name, words, peer = rest
    if name == "PeerLost":
        return PeerLost(words, peer)
    kind = getattr(errors, name, None)
    if not isinstance(kind, type):
        return RuntimeError(f"{name}: {words}")
    return _rebuilt(kind, words)


def _rebuilt(kind: type[Exception], words: str) -> Exception:
    """Whatever the error's constructor asks for, its words are all that a test reads."""
    error = kind.__new__(kind, words)
    error.args = (words,)
    return error
