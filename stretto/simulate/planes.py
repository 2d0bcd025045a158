"""Who has which lines with whom: for control, on which memberships talk, and for data, on which tensors go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stretto.membership.messages import Decide, Denied, Elsewhere, Hello, Leave, Message
from stretto.simulate.clock import Clock
from stretto.simulate.lines import SILENCE, Line

if TYPE_CHECKING:
    from stretto.simulate.port import Frame
    from stretto.simulate.process import Process
    from stretto.simulate.world import World

_KNOCKS: Final = 0.5
_TWICE: Final = 0.02
"""How many control messages come twice."""


class Control:
    """One control connection a pair; a new one takes the place of the one that there is."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lines: dict[frozenset[int], Line] = {}

    # The way in

    def enter(self, agent: Process) -> None:
        """As :func:`stretto.membership.entry.enter` does: ask at one address after another."""
        if agent.views is None:
            if not any(agent.uid in pair for pair in self._lines):
                self.knock(agent)
            self._world.clock.after(_KNOCKS, agent, lambda: self.enter(agent))

    def knock(self, agent: Process) -> None:
        places = [
            other.uid for other in self._world.agents if other.alive and other.views is not None and other is not agent
        ]
        if places:
            self.connect(agent, places[agent.tries % len(places)])
        agent.tries += 1

    # Connections

    def connect(self, agent: Process, uid: int) -> None:
        """Dial; it takes a moment, and silence longer."""
        world = self._world

        def arrive() -> None:
            other = world.by_uid[uid]
            here = world.net.together(agent.uid, uid)
            if not (other.alive and here and other.views is not None) or world.clock.now < other.stopped_until:
                late = 0.0 if here and not other.alive and not other.dark else SILENCE
                world.clock.after(late, agent, lambda: self._failed(agent, uid))
                return
            self._replace(agent, other).say(agent.uid, agent.first_word)
            if agent.views is not None:
                agent.happen("met", uid)

        world.clock.after(world.net.delay(), agent, arrive)

    def _replace(self, agent: Process, other: Process) -> Line:
        pair = frozenset((agent.uid, other.uid))
        old = self._lines.get(pair)
        if old is not None:
            for uid in old.uids:
                old.fall_silent(uid)
        line = self._lines[pair] = Line(self._world.net, self, agent, other)
        return line

    def _failed(self, agent: Process, uid: int) -> None:
        if frozenset((agent.uid, uid)) not in self._lines:
            agent.happen("lost", uid, "it does not answer")

    def between(self, a: int, b: int) -> Line | None:
        return self._lines.get(frozenset((a, b)))

    def send(self, agent: Process, uid: int, message: Message) -> None:
        line = self.between(agent.uid, uid)
        if line is not None:
            line.say(agent.uid, message)
            if self._world.random.random() < _TWICE:
                line.say(agent.uid, message)

    def hang_up(self, agent: Process, uid: int) -> None:
        line = self._lines.pop(frozenset((agent.uid, uid)), None)
        if line is not None:
            line.close(agent.uid)

    # What comes out of them

    def heard(self, line: Line, at: Process, item: Hello | Message) -> None:
        uid = line.other(at.uid)
        if at.views is None:
            self._answered(at, uid, item)
        elif isinstance(item, Hello):
            at.happen("hello", item)
        else:
            if isinstance(item, Leave):
                self._world.promises.leavers.add(uid)
            at.happen("heard", uid, item)

    def _answered(self, agent: Process, uid: int, message: Message) -> None:
        match message:
            case Decide(view):
                agent.enter_run(view, uid)
            case Elsewhere(leader):
                self.hang_up(agent, uid)
                self.connect(agent, leader.uid)
            case Denied(why):
                self._world.deny(agent, why)
            case _:
                pass

    def ended(self, line: Line, at: Process) -> None:
        pair, uid = frozenset(line.uids), line.other(at.uid)
        if self._lines.get(pair) is line:
            del self._lines[pair]
        if pair not in self._lines:
            at.happen("lost", uid, "its connection closed")


class Data:
    """At most one data connection a pair that is open at both ends. ``nbytes``: of all tensors that have left."""

    def __init__(self, world: World, clock: Clock) -> None:
        self._world, self.clock = world, clock
        self.nbytes = 0
        self._lines: dict[frozenset[int], Line] = {}

    def dial(self, uid: int, peer: int) -> Line | None:
        """The line to ``peer``; None, and word of it later, where it is dead."""
        agent, other, pair = self._world.by_uid[uid], self._world.by_uid[peer], frozenset((uid, peer))
        if not other.alive:
            late = SILENCE * (1 + self._world.random.random()) if other.dark else self._world.net.delay()
            number = agent.port.epoch.number
            self.clock.after(late, agent, lambda: agent.port.unreached(peer, number))
            return None
        line = self._lines.get(pair)
        if line is None or len(line.open) < 2:
            line = self._lines[pair] = Line(self._world.net, self, agent, other)
        return line

    def between(self, a: int, b: int) -> Line | None:
        return self._lines.get(frozenset((a, b)))

    def sent(self, uid: int, nbytes: int) -> None:
        self.nbytes += nbytes
        self._world.sent(self._world.by_uid[uid])

    def heard(self, line: Line, at: Process, item: Frame) -> None:
        at.port.heard(line, line.other(at.uid), item)

    def ended(self, line: Line, at: Process) -> None:
        uid = line.other(at.uid)
        left = uid in self._world.promises.leavers
        at.port.ended(line, uid, "it finished and left" if left else "its connection closed")
