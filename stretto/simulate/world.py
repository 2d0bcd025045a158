"""One simulated run: its processes, its network, and what goes wrong in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import torch

from stretto.codecs import Identity
from stretto.core import FIRST_SERVER, Strategy
from stretto.errors import RunLost
from stretto.membership.messages import FOUNDER, Vote
from stretto.membership.votes import majority
from stretto.simulate.agent import Agent
from stretto.simulate.clock import Clock
from stretto.simulate.copies import Copies
from stretto.simulate.faults import Fault
from stretto.simulate.history import History
from stretto.simulate.lines import SILENCE, Line, Network
from stretto.simulate.planes import Control, Data
from stretto.simulate.process import Process
from stretto.simulate.promises import Broken, Promises
from stretto.simulate.replay import replayed
from stretto.simulate.server import Server
from stretto.simulate.task import Job, Record, job

CALM = 400.0
"""Virtual seconds in which a run must end when nothing goes wrong any more."""
EXACT = 1e-12
AGAIN = 3.0
"""Seconds after which a process that was refused is started again."""


class World:
    """``size`` agents, ``servers`` and their coordinator, until all agents have ended.

    Everything follows from the arguments.

    ``task``: what they train; by default it is drawn.
    """

    def __init__(
        self,
        seed: int,
        strategy: Strategy,
        size: int,
        faults: Sequence[Fault],
        log: Callable[[str], None] | None = None,
        task: Job | None = None,
        *,
        servers: int = 0,
    ) -> None:
        self.random = rng = random.Random(seed)
        self.strategy, self.size, self.faults, self.log = strategy, size, faults, log
        self.clock = Clock()
        self.net = Network(self.clock, rng, rng.choice((0.005, 0.02, 0.05)))
        self.pace = rng.choice((0.02, 0.1, 0.3))
        self.slow = rng.random() < 0.25
        self.promises = Promises()
        self.control, self.exchanges = Control(self), Data(self, self.clock)
        self.job = task or job(rng, 2 if strategy.signal == "gradient" else 3)
        self.history = History.of(strategy)
        self.copies = Copies(self.history.server.replicas if self.history is not None else 0)
        self.record = Record(self.job, self.history)
        self.agents: list[Process] = []
        self.by_uid: dict[int, Process] = {}
        self.steps = self.torn = 0
        self.outcome = self._broken = ""
        self._by_label: dict[int, Process] = {}
        self._disk: dict[int, Vote | None] = {}
        self._falls: dict[int, int] = {}
        self._gone: set[int] = set()
        self._calm = False
        for fault in faults:
            self.clock.at(fault.at, None, partial(self._strike, fault))
        founder = self._born(FOUNDER, None)
        assert isinstance(founder, Agent)
        founder.found(size, servers)
        self._labels = [*range(size), *range(FIRST_SERVER, FIRST_SERVER + servers)]
        for label in self._labels:
            self.control.enter(self._born(label, None))

    def run(self) -> None:
        """From the beginning to the end.

        Raises:
            Broken: a promise does not hold.
        """
        last = max((fault.at + fault.seconds for fault in self.faults), default=0.0)
        with torch.no_grad():
            self.clock.run(last + 0.5)
            if not self.clock.halted:
                self._begin_calm()
                self.clock.run(self.clock.now + CALM)
            self._judge()

    # Processes

    def _born(self, label: int, vote: Vote | None) -> Process:
        kind = Server if label >= FIRST_SERVER else Agent
        agent: Process = kind(self, 101 + len(self.agents), label, vote)
        self.agents.append(agent)
        self.by_uid[agent.uid] = self._by_label[label] = agent
        return agent

    def _start_again(self, label: int) -> None:
        if label != FOUNDER and label not in self._gone and not self._by_label[label].alive:
            self.control.enter(self._born(label, self._disk.get(label)))

    def _die(self, agent: Process, *, dark: bool = False) -> None:
        """Its connections end, with none or some of what it said last; ``dark``: they do not even end."""
        agent.alive, agent.dark = False, dark
        for line in [line for line in self.net.lines if agent.uid in line.uids]:
            if dark:
                line.fall_silent(agent.uid)
                self._suspend(line)
            else:
                line.break_off(agent.uid, self.random.choice((0, 1, 2, 1000)))
        self.look()

    def _suspend(self, line: Line) -> None:
        for uid in line.uids:
            self.clock.after(self.net.patience(), self.by_uid[uid], partial(line.notice, uid))

    def end(self, agent: Process) -> None:
        """It has left."""
        agent.alive = False
        for line in [line for line in self.net.lines if agent.uid in line.uids]:
            line.close(agent.uid)
        self._gone.add(agent.label)
        self.look()

    def deny(self, agent: Process, why: str) -> None:
        """It ends, and its launcher starts it again in a while."""
        self.say(f"{agent} is denied: {why}")
        self._die(agent)
        self.clock.after(AGAIN, None, lambda: self._start_again(agent.label))

    def save(self, agent: Process, vote: Vote | None) -> None:
        self._disk[agent.label] = vote
        self.promises.note_vote(vote)

    def sent(self, agent: Process) -> None:
        agent.sent += 1
        fatal = self._falls.get(agent.label)
        if fatal is not None:
            self._falls[agent.label] = fatal - 1
            if fatal == 1:
                del self._falls[agent.label]
                self.say(f"*** {agent} falls")
                self._die(agent)

    def lose(self, agent: Process, error: RunLost) -> None:
        """Copies of the model that ``agent`` needs are gone: it is over, if not with a broken promise."""
        self.say(f"*** {agent}: {error}")
        if not self.copies.lost(agent.port.epoch):
            self._broken = f"{agent} is told that {error}; but somebody is there who had one"
        self.outcome, self.clock.halted = "slots lost", True

    def look(self) -> None:
        """Is there nobody left who trains, or could?"""
        training = [a for a in self.agents if a.alive and a.trains and not a.finished]
        inside = [a for a in training if a.number and not a.out]
        some = any(a.finished for a in self.agents)
        self.clock.halted |= (not training and (self._calm or some)) or (some and not inside and self._calm)

    # Faults

    def say(self, text: str) -> None:
        if self.log is not None:
            self.log(f"{self.clock.now:9.4f} {text}")

    def _strike(self, fault: Fault) -> None:
        self.say(f"*** {fault}")
        if fault.kind == "fall":
            self._falls[fault.who[0]] = fault.pieces
            return
        struck = [self._by_label[label] for label in fault.who]
        agent = struck[0]
        match fault.kind:
            case "kill" | "power" if agent.alive:
                self._die(agent, dark=fault.kind == "power")
            case "restart":
                self._start_again(agent.label)
            case "leave":
                agent.leave_soon()
            case "cut":
                self.net.cut({a.uid for a in struck}, fault.seconds, self._silent)
            case "stop":
                self._stop(agent, fault.seconds)
            case "snap":
                self._snap(self.control.between(*(a.uid for a in struck)))
            case "sever":
                self._snap(self.exchanges.between(*(a.uid for a in struck)))
            case "suspect":
                agent.happen("suspect", struck[1].uid, "somebody said so")

    @staticmethod
    def _snap(line: Line | None) -> None:
        if line is not None:
            line.snap()

    def _silent(self, line: Line) -> None:
        """A line over which nothing came for too long: the control plane gives it up, the data plane waits."""
        if line is self.control.between(*line.uids):
            line.snap()

    def _stop(self, agent: Process, seconds: float) -> None:
        agent.stopped_until = self.clock.now + seconds
        if seconds > SILENCE:
            for line in [line for line in self.net.lines if agent.uid in line.uids]:
                self.clock.after(self.net.patience(), None, partial(self._silent, line))

    def _begin_calm(self) -> None:
        self.say("*** nothing goes wrong from now on, and all that died are started again")
        self._calm = True
        self._falls.clear()
        self.net.calm()
        for label in self._labels:
            self._start_again(label)
        self.look()

    # The end

    def _judge(self) -> None:
        stuck = [a for a in self.agents if a.alive and a.trains and not a.finished]
        ended = [a for a in self.agents if a.finished and a.trainer is not None and not a.trainer.leaving]
        if self._broken:
            raise Broken(self._broken)
        if self.outcome:
            return
        self.outcome = "ended" if ended else self._obstacle() if stuck else "all left"
        if not self.clock.halted and not self._obstacle():
            raise Broken(f"the faults are over, and {', '.join(map(str, stuck))} did not end in {CALM:g} s")
        if not self.outcome:
            raise Broken("the run is over, and nobody has ended the training")
        if not ended:
            return
        last = max(a.number for a in ended)
        places = {a.trainer.place for a in ended if a.trainer is not None and a.number == last}
        if len(places) > 1:
            raise Broken(f"{', '.join(map(str, ended))} have ended with different weights")
        (place,) = places
        self.record.check_samples(place)
        off = self.record.replay(place, self.strategy)
        if self.strategy.codec == Identity() and not off <= EXACT:
            raise Broken(f"the weights are {off:.1e} from those of one process that trains the same")
        self._judge_leavers(self.record.way(place))
        if self.history is not None:
            self._judge_slots(self.history, [a.uid for a in ended if a.number == last], place)

    def _judge_slots(self, history: History, ended: Sequence[int], place: str) -> None:
        """What servers did led to these weights, and is what they promise."""
        final = history.final(ended)
        history.check(final, self.job.samples, self.job.epochs)
        off = replayed(history, self.strategy, final, self.job, self.record.weights(place))
        if not off <= EXACT:
            raise Broken(f"the weights are {off:.1e} from those of one process that trains the same")

    def _judge_leavers(self, way: list[str]) -> None:
        """Who left before stands where the others stood; one step beside it where it left in mid-change of a view."""
        self.steps = len(way) - 1
        for agent in self.agents:
            if agent.finished and agent.trainer is not None and agent.trainer.place not in ("", *way):
                self.torn += 1
                before = self.record.before(agent.trainer.place)  # (what a step agreed on and what it led to are two)
                if before not in way and self.record.before(before) not in way:
                    raise Broken(f"{agent} has left with weights that the others never had")

    def _obstacle(self) -> str:
        """Why training cannot go on, whatever anybody does."""
        founder = self.agents[0]
        assert founder.views is not None
        if not self.promises.decided and not founder.views.view.number:
            return "" if founder.alive else "never began"
        if not any(a.alive and a.healed for a in self.agents):
            return "model lost"
        known = [a.views.view for a in self.agents if a.alive and a.views is not None]
        last = max(known, key=lambda view: view.number)
        votes = {vote.uid for label, vote in self._disk.items() if vote is not None and self._by_label[label].alive}
        here = [uid for uid in last.voters if self.by_uid[uid].alive or uid in votes]
        if any(uid in self.promises.leavers for uid in last.voters):
            return "voters left"
        return "" if len(here) >= majority(last.voters) else "no majority"
