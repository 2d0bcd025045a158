"""The agents of one launch, from their start to the end of the last: started again, or ended together.

Theory of operation. An agent that is killed is started again with the same number, while others train and hold the
model for it; so is one that lost the others (its error is a ``NetworkError``), unless within a moment another turns out
to be the cause. An agent whose script failed did so for a reason that the others have too, so it ends the run: its
traceback is shown, the others' are not, and all are ended, with their couriers and data loaders: SIGTERM, and SIGKILL a
moment later, to whole process groups. Only in an agent that was started again a failure may be due to just that (a file
exists already): it is shown, and counts as one more death. An agent that ends leaves its courier a moment to say
goodbye.

Servers are looked after like agents. They go by themselves when all agents have left; where nobody was left to tell
them, they are told here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from stretto.core import called
from stretto.errors import NetworkError, ScriptFailed
from stretto.launch.coordinator import Call, Lifeline, import_path
from stretto.launch.hearing import Hearing, Show
from stretto.launch.life import Agent, End, Life
from stretto.launch.lives import Lives
from stretto.membership.compose import listed

_SETTLE: Final = 1.0
"""Seconds to wait for the cause when the first to fail only missed another agent."""
_GRACE: Final = 1.2
"""Seconds between SIGTERM and SIGKILL; all is over within 2 s."""
_IDLE: Final = 15.0
"""Seconds that servers have to go when all agents have ended."""
_LATE: Final = 60.0
"""Seconds in which an agent that was started again as the others finished has to find out, and end."""


class NobodyLeft(ScriptFailed):
    """No agent has the model any more; ``what`` took the last one."""

    def __init__(self, what: str, next_step: str) -> None:
        super().__init__(f"{what}{next_step}")
        self.what = what


class Run:
    """The agents of one launch. A context manager: at its end nothing is left running.

    Args:
        show: gets every line, and whether it is of standard error.
        piped: whether we read what agents print.
        elsewhere: whether other launches have agents of the same run.
        served_elsewhere: whether they have servers of it.
        restarts: how often an agent is started again at most; None: always.
    """

    def __init__(
        self,
        show: Show,
        *,
        piped: bool,
        elsewhere: bool = False,
        served_elsewhere: bool = False,
        restarts: int | None = None,
    ) -> None:
        self._hearing = Hearing(show, self._on_signal)
        self._piped = piped
        self._elsewhere = elsewhere
        self._shared = elsewhere or served_elsewhere
        self._lives = Lives(restarts)
        self._agents: list[Agent] = []
        self._lost: list[Agent] = []
        self._culprit: Agent | None = None
        self._concerned: list[Agent] = []
        self._coordinator: Life | None = None
        self._lifeline = Lifeline()
        self._signal: int | None = None
        self._ending_since: float | None = None
        self._kill_after = _GRACE
        self._told = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._lifeline)
        self._stack.enter_context(self._hearing)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def folder(self) -> Path:
        """Private to this launch, and gone with it."""
        return self._hearing.folder

    def coordinate(self, call: Call) -> str:
        """Start a coordinator; its address. It stays for agents elsewhere, even where we are killed.

        Raises:
            UsageError: its port is in use, or its address is not this machine's.
        """
        line = self._lifeline
        self._coordinator = self._hearing.start(
            line.command(), import_path(os.environ), guarded=not self._shared, descriptors=[line.theirs]
        )
        return line.begin(call)

    def start(self, label: int, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start an agent, or a server (:data:`stretto.core.FIRST_SERVER`)."""
        life = self._live(label, command, environ)
        self._agents.append(Agent(label, command, environ, life, self._lives))

    def until_the_end(self) -> int:
        """Poll until all agents are gone, and those elsewhere that need our coordinator too."""
        while not self._over():
            for life in self._hearing.poll():
                if self._ending_since is None:
                    self._on_end(life)
            now = time.monotonic()
            self._hearing.age(now)
            self._advance(now)
        self._tell_who_ended()
        if self._signal is not None:
            return 128 + self._signal
        if self._culprit is not None:
            raise self._verdict(self._culprit)
        return 0

    def _over(self) -> bool:
        if not all(agent.over for agent in self._agents):
            return False
        if self._ending_since is not None or not self._shared or self._coordinator is None:
            return True
        self._lifeline.dismiss()
        return self._coordinator.gone

    def _live(self, label: int, command: Sequence[str], environ: Mapping[str, str]) -> Life:
        prefix = f"{called(label).removeprefix('agent ')}| " if self._piped else ""
        return self._hearing.start(command, environ, prefix=prefix, piped=self._piped)

    @property
    def _trainers(self) -> list[Agent]:
        return [agent for agent in self._agents if not agent.serves]

    def _say(self, line: str) -> None:
        self._hearing.show(f"stretto: {line}", True)

    def _on_end(self, life: Life) -> None:
        if life is self._coordinator:
            self._on_coordinator_end(life)
            return
        agent = next(agent for agent in self._agents if agent.life is life)
        match life.end:
            case End.KILLED:
                life.group.send(signal.SIGKILL)  # its courier and data loaders have nobody to work for
                self._died(agent)
            case End.ALONE:
                self._lost.append(agent)
            case End.FAILED if agent.serves and life.code == NetworkError.exit_code:
                self._lost.append(agent)
            case End.FAILED if agent.lives.deaths:
                self._hearing.release(life)
                self._died(agent)
            case End.FAILED:
                self._fail(agent)

    def _on_coordinator_end(self, life: Life) -> None:
        self._hearing.release(life)
        if life.end is not End.WELL:
            self._say(f"the coordinator {life.how}; an agent takes its place")

    def _died(self, agent: Agent) -> None:
        life = agent.life
        agent.lives = agent.lives.died(0.0 if life.end is End.FAILED else life.ended_at - life.began_at)
        what = f"{agent.name} {life.how}"
        if self._others_have_finished():
            self._say(f"{what}; it is not started again, for the others have finished")
        elif self._nobody_trains() and not agent.serves:
            self._fail(agent)
        elif (why := agent.lives.why_no_more) is not None:
            self._say(f"{what}; {why}, and the others go on without it")
        else:
            self._say(f"{what}; {agent.lives}")
            agent.due = life.ended_at + agent.lives.pause

    def _nobody_trains(self) -> bool:
        """No agent of ours or elsewhere can hold the model."""
        return not self._elsewhere and not any(agent.running for agent in self._trainers)

    def _others_have_finished(self) -> bool:
        return self._nobody_trains() and any(agent.finished for agent in self._trainers)

    def _advance(self, now: float) -> None:
        """What time alone brings about."""
        if self._ending_since is None:
            self._judge(now)
        if self._ending_since is None:
            self._begin_again(now)
            self._end_the_late(now)
            self._end_the_idle(now)
        elif now - self._ending_since > self._kill_after:
            self._send(signal.SIGKILL)

    def _judge(self, now: float) -> None:
        """Who lost the others waits for a moment: one of these may be the cause, and end the run."""
        while self._lost and (self._nobody_trains() or now - self._lost[0].life.ended_at > _SETTLE):
            self._died(self._lost[0])
            if self._ending_since is not None:
                return
            del self._lost[0]

    def _begin_again(self, now: float) -> None:
        finished = self._others_have_finished()
        for agent in self._agents:
            if agent.due is None:
                continue
            if finished:
                agent.due = None
                self._say(f"{agent.name} is not started again, for the others have finished")
            elif agent.life.gone and now >= agent.due:
                agent.due = None
                agent.life = self._live(agent.label, agent.command, agent.environ)

    def _end_the_late(self, now: float) -> None:
        """An agent that was started again as the others finished cannot get in any more, and should know it."""
        finished = [agent.life.ended_at for agent in self._trainers if agent.finished]
        running = [agent for agent in self._trainers if agent.running]
        if self._elsewhere or not finished or not all(agent.lives.deaths for agent in running):
            return
        for agent in running:
            late = agent.life.began_at - max(finished)
            if late > -_LATE and now - max(finished) > _LATE + max(late, 0.0):
                self._say(f"{agent.name} was started again as the others finished, and hangs: it is killed")
                self._hearing.finish(agent.life)

    def _end_the_idle(self, now: float) -> None:
        """Servers that nobody told that all agents have left."""
        if self._elsewhere or not all(agent.over for agent in self._trainers):
            return
        idle = now - max((agent.life.ended_at for agent in self._trainers), default=now)
        for server in self._agents:
            if server.serves and server.running and idle > 2 * _IDLE:
                self._hearing.finish(server.life)
            elif server.serves and server.running and idle > _IDLE and not self._told:
                server.life.group.send(signal.SIGTERM)
        self._told |= idle > _IDLE

    def _fail(self, culprit: Agent) -> None:
        """End all because of one."""
        self._culprit = culprit
        self._concerned = [a for a in self._agents if a is not culprit and (a.running or a in self._lost)]
        self._hearing.release(culprit.life)
        self._end_all(time.monotonic())

    def _tell_who_ended(self) -> None:
        """Known only when all are gone: one that seemed to run may have been finishing when the signal came."""
        labels = [agent.label for agent in self._concerned if not agent.finished]
        if labels and self._culprit is not None and self._culprit.life.end is not End.ALONE:
            self._say(f"{listed(labels)} ended because {self._culprit.name} failed")

    def _on_signal(self, number: int) -> None:
        if self._signal is not None:
            self._kill_after = 0.0
        self._signal = number
        self._end_all(time.monotonic())

    def _end_all(self, now: float) -> None:
        if self._ending_since is not None:
            return
        self._ending_since = now
        self._hearing.muted = True
        for agent in self._agents:
            agent.due = None
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for agent in self._agents:
            if not agent.life.gone:
                agent.life.group.send(number)

    def _verdict(self, agent: Agent) -> ScriptFailed:
        what = f"{agent.name} {agent.life.how}"
        if agent.life.end is End.FAILED:
            return ScriptFailed(what)
        if len(self._trainers) > 1:
            what += ", and no other agent is left that has the model"
        memory = ", and see whether the machine was out of memory" if agent.life.code == -signal.SIGKILL else ""
        return NobodyLeft(what, f"; start the run again{memory}")
