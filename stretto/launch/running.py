"""The agents of one launch, from their start to the end of the last: heard together, ended together.

Theory of operation. One thread polls the agents' pipes, their ends (pidfds) and our signals. When an agent fails, the
others soon fail too, because they miss it: whoever fails first with anything else than ``PeerLost`` is the one to show.
Its traceback is shown, the others' are not, and all are ended: SIGTERM, and SIGKILL a moment later, to whole process
groups, so that couriers and data loaders go as well. An agent that ends leaves its courier a moment to say goodbye.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Final, Self

from stretto.errors import ScriptFailed
from stretto.launch.output import Held, Pipe
from stretto.launch.processes import Group, Warden

_TICK: Final = 0.05
_SETTLE: Final = 1.0
"""Seconds to wait for the cause when the first to fail only missed another agent."""
_HOLD: Final = 2.0
"""Seconds after which a traceback whose agent lives on is shown: it was caught, and logged."""
_GRACE: Final = 1.2
"""Seconds between SIGTERM and SIGKILL; all is over within 2 s."""
_LINGER: Final = 2.0
"""Seconds that an agent's other processes have when the agent has ended."""

Show = Callable[[str, bool], None]


class _Agent:
    """One agent as the launcher sees it: running, then lingering (its trainer has ended), then gone."""

    def __init__(self, rank: int, group: Group, prefix: str) -> None:
        self.rank = rank
        self.group = group
        leader = group.leader
        self.out = Pipe(leader.stdout, prefix) if leader.stdout else None
        self.err = Pipe(leader.stderr, prefix) if leader.stderr else None
        self.held = Held()
        self.code: int | None = None
        self.ended_at = 0.0
        self.gone = False

    def missed_another(self) -> bool:
        return self.held.mentions("PeerLost")


class Run:
    """The agents of one launch. A context manager: at its end nothing is left running."""

    def __init__(self, show: Show, *, piped: bool) -> None:
        self._show = show
        self._piped = piped
        self._agents: list[_Agent] = []
        self._failed: list[_Agent] = []
        self._culprit: _Agent | None = None
        self._signal: int | None = None
        self._ending_since: float | None = None
        self._kill_after = _GRACE
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._warden = self._stack.enter_context(Warden())
        self._selector = self._stack.enter_context(selectors.DefaultSelector())
        self._selector.register(self._stack.enter_context(_signals(self._on_signal)), selectors.EVENT_READ)
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            for agent in self._agents:
                self._finish(agent)

    def start(self, rank: int, command: Sequence[str], environ: Mapping[str, str]) -> None:
        group = self._warden.start(command, environ, piped=self._piped)
        agent = _Agent(rank, group, f"{rank}| " if self._piped else "")
        self._agents.append(agent)
        self._selector.register(group.watch, selectors.EVENT_READ, agent)
        for pipe in (agent.out, agent.err):
            if pipe is not None:
                self._selector.register(pipe.source, selectors.EVENT_READ, (agent, pipe))

    def until_the_end(self, others: Callable[[], bool]) -> int:
        """Poll until all agents are gone, and ``others`` (agents elsewhere that need our coordinator) too."""
        while not all(agent.gone for agent in self._agents) or (self._ending_since is None and others()):
            for key, _ in self._selector.select(_TICK):
                if isinstance(key.data, _Agent):
                    self._on_end(key.data)
                elif key.data is not None:
                    self._pass_on(*key.data)
                else:
                    os.read(key.fd, 64)
            self._advance(time.monotonic())
        if self._signal is not None:
            return 128 + self._signal
        if self._culprit is not None:
            raise ScriptFailed(self._verdict(self._culprit))
        return 0

    def _pass_on(self, agent: _Agent, pipe: Pipe) -> None:
        lines = pipe.read()
        self._print(agent, pipe, lines)
        if not pipe.open:
            self._selector.unregister(pipe.source)

    def _print(self, agent: _Agent, pipe: Pipe, lines: list[str]) -> None:
        if pipe is agent.err:
            lines = agent.held.take(lines, time.monotonic())
            if self._ending_since is not None:
                return
        for line in lines:
            self._show(line, pipe is agent.err)

    def _on_end(self, agent: _Agent) -> None:
        self._selector.unregister(agent.group.watch)
        agent.code = agent.group.reap()
        agent.ended_at = time.monotonic()
        self._read_the_rest(agent)
        if agent.code and self._ending_since is None:
            self._failed.append(agent)

    def _read_the_rest(self, agent: _Agent) -> None:
        for pipe in (agent.out, agent.err):
            if pipe is not None and pipe.open:
                self._print(agent, pipe, pipe.read_all())

    def _release(self, agent: _Agent) -> None:
        for line in agent.held.release():
            self._show(line, True)

    def _advance(self, now: float) -> None:
        """What time alone brings about."""
        self._judge(now)
        for agent in self._agents:
            if agent.code is None:
                since = agent.held.since
                if self._ending_since is None and since is not None and now - since > _HOLD:
                    self._release(agent)
            elif not agent.gone and (agent.group.gone() or now - agent.ended_at > _LINGER):
                self._read_the_rest(agent)
                if agent.code == 0 and self._ending_since is None:
                    self._release(agent)
                self._finish(agent)
        if self._ending_since is not None and now - self._ending_since > self._kill_after:
            self._send(signal.SIGKILL)

    def _judge(self, now: float) -> None:
        """Decide who failed first, once that is clear."""
        if not self._failed or self._ending_since is not None:
            return
        causes = [agent for agent in self._failed if not agent.missed_another()]
        everyone_ended = all(agent.code is not None for agent in self._agents)
        if causes or everyone_ended or now - self._failed[0].ended_at > _SETTLE:
            self._culprit = (causes or self._failed)[0]
            self._release(self._culprit)
            others = [agent.rank for agent in self._agents if agent is not self._culprit and agent.code != 0]
            if others:
                self._show(f"stretto: {_ranks(others)} ended because agent {self._culprit.rank} failed", True)
            self._end_all(now)

    def _on_signal(self, number: int) -> None:
        if self._signal is not None:
            self._kill_after = 0.0
        self._signal = number
        self._end_all(time.monotonic())

    def _end_all(self, now: float) -> None:
        if self._ending_since is None:
            self._ending_since = now
            self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for agent in self._agents:
            if not agent.gone:
                agent.group.send(number)

    def _finish(self, agent: _Agent) -> None:
        """Whatever is left of it goes now."""
        if agent.gone:
            return
        agent.group.send(signal.SIGKILL)
        if agent.code is None:
            agent.code = agent.group.reap()
        agent.gone = True
        self._warden.forget(agent.group)
        for pipe in (agent.out, agent.err):
            if pipe is not None:
                if pipe.source in self._selector.get_map():
                    self._selector.unregister(pipe.source)
                pipe.close()

    def _verdict(self, agent: _Agent) -> str:
        code = agent.code or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = "; was the machine out of memory?" if code == -signal.SIGKILL else ""
        return f"agent {agent.rank} {how}{hint}"


@contextlib.contextmanager
def _signals(heard: Callable[[int], None]) -> Iterator[socket.socket]:
    """Hear of SIGINT and SIGTERM, and wake a poll of the socket. Outside the main thread Python allows neither."""
    read, write = socket.socketpair()
    write.setblocking(False)

    def handle(number: int, frame: FrameType | None) -> None:
        heard(number)
        with contextlib.suppress(BlockingIOError):
            write.send(b"\0")

    with read, write:
        if threading.current_thread() is not threading.main_thread():
            yield read
            return
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield read
        finally:
            for number, old in before.items():
                signal.signal(number, old)


def _ranks(ranks: Sequence[int]) -> str:
    return f"agent {ranks[0]} was" if len(ranks) == 1 else f"agents {', '.join(map(str, ranks))} were"
