"""Searches membership for a schedule of faults that breaks it: many worlds of Views, each from a seed, in virtual time.

Theory of operation. A world holds a coordinator, its agents and what is between them: control connections that keep the
order of messages, and lose them, break, cross and fall silent. Every agent has a toy of a courier, which goes through
rounds of two buckets and knows from whom a finished bucket came. A schedule is a list of faults, drawn from the seed
beforehand, so that a break can be shrunk: faults are left out one by one as long as it still breaks. Whenever a view is
installed the invariants are checked (:meth:`World.check_install`); when the faults are over and all that crashed is
started again, a view with everybody must come.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from stretto.core import Network
from stretto.membership.effects import (
    Deny,
    Dial,
    Drop,
    Effect,
    Freeze,
    Hold,
    Install,
    Knock,
    Out,
    Save,
    Say,
    Send,
    Timer,
)
from stretto.membership.messages import (
    FOUNDER,
    Ballot,
    Decide,
    Denied,
    Elsewhere,
    Hello,
    Message,
    Report,
    Seat,
    View,
    Vote,
    Waiting,
)
from stretto.membership.settle import settle
from stretto.membership.views import Views
from stretto.membership.votes import majority

BUCKETS = 2
SILENCE = 2.0
CALM = 400.0
Result = tuple[int, frozenset[int]]
"""A finished bucket: in which view, of whom."""


class Broken(AssertionError):
    """A promise does not hold."""


@dataclass(frozen=True, slots=True)
class Fault:
    at: float
    kind: str
    what: tuple[int, ...]
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.at:7.3f} {self.kind} {' '.join(map(str, self.what))} {self.seconds:.2f}".rstrip()


@dataclass(slots=True)
class Courier:
    """A trainer and its courier, as toys."""

    view: View | None = None
    round: int = 0
    begun: bool = False
    done: dict[int, Result] = field(default_factory=dict)
    healed: bool = True
    frozen: bool = False
    hold: bool = False
    held: bool = False
    settling: bool = False
    out: bool = False
    history: dict[int, tuple[Result, ...]] = field(default_factory=dict)

    @property
    def fence(self) -> bool:
        return self.round % 3 == 0

    def report(self, uid: int) -> Report:
        done = bytes(bucket in self.done for bucket in range(BUCKETS)) if self.begun else b""
        return Report(uid, self.round, self.begun, done, self.begun and self.fence, self.healed, "model")


@dataclass(slots=True)
class Node:
    uid: int
    label: int
    vote: Vote | None = None
    views: Views | None = None
    courier: Courier = field(default_factory=Courier)
    alive: bool = True
    stopped_until: float = 0.0
    tries: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        return self.views.view.number if self.views is not None else 0


@dataclass(slots=True)
class Wire:
    """One control connection; ``at`` keeps the order of what each end sends."""

    ends: tuple[int, int]
    up: bool = True
    at: dict[int, float] = field(default_factory=dict)


class World:
    def __init__(self, seed: int, size: int, faults: list[Fault], *, log: Callable[[str], None] | None = None) -> None:
        self.random = random.Random(seed)
        self.size = size
        self.now = 0.0
        self.log = log
        self.nodes: dict[int, Node] = {}
        self.by_label: dict[int, int] = {}
        self.disk: dict[int, Vote | None] = {}
        self.wires: dict[frozenset[int], Wire] = {}
        self.groups: dict[int, int] = {}
        self.decided: dict[int, View] = {}
        self.reports: dict[tuple[int, int], Report] = {}
        self.accepted: dict[tuple[int, int], View] = {}
        self.leavers: set[int] = set()
        self.given: dict[tuple[int, int], dict[int, frozenset[int]]] = {}
        self.parts: dict[tuple[int, int], set[int]] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._uids = 100
        for fault in faults:
            self.after(fault.at, lambda fault=fault: self.strike(fault))
        founder = self.born(FOUNDER)
        founder.views = Views.founder(seat_of(founder), size, Network())
        self.do(founder, founder.views.begin())
        for label in range(size):
            self.enter(self.born(label))

    # Time.

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now + seconds, self._order, call))

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> bool:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, call = heapq.heappop(self._queue)
            call()
            if stop():
                return True
        self.now = max(self.now, until)
        return stop()

    def on(self, node: Node, call: Callable[[], None], seconds: float = 0.0) -> None:
        """Happens at ``node``, when it is not stopped, unless it is dead."""

        def happen() -> None:
            if not node.alive:
                return
            if self.now < node.stopped_until:
                self.after(node.stopped_until - self.now, happen)
            else:
                call()

        self.after(seconds, happen)

    def delay(self) -> float:
        return self.random.choice((0.001, 0.01, 0.05)) * (1 + self.random.random())

    # Processes.

    def born(self, label: int, vote: Vote | None = None) -> Node:
        self._uids += 1
        node = Node(self._uids, label, vote)
        node.courier.healed = True
        self.nodes[node.uid] = node
        self.by_label[label] = node.uid
        return node

    def enter(self, node: Node) -> None:
        """As :func:`stretto.membership.entry.enter` does: ask at one address after another."""
        if node.views is not None:
            return
        if not self.wired(node):
            self.knock(node)
        self.on(node, lambda: self.enter(node), 0.5)

    def knock(self, node: Node) -> None:
        places = sorted(u for u, other in self.nodes.items() if other.alive and other.views is not None)
        places = [uid for uid in places if uid != node.uid and not self.linked(uid, node.uid)]
        if places:
            self.connect(node, places[node.tries % len(places)])
        node.tries += 1

    def linked(self, a: int, b: int) -> bool:
        wire = self.wires.get(frozenset((a, b)))
        return wire is not None and wire.up

    def wired(self, node: Node) -> bool:
        return any(node.uid in pair and wire.up for pair, wire in self.wires.items())

    def seat_in(self, node: Node, view: View, head: int) -> None:
        label = next((seat.label for seat in view.seats if seat.uid == node.uid), node.label)
        node.label = label
        node.views = Views.agent(seat_of(node), view, head, size=self.size, vote=node.vote)
        if any(seat.uid == node.uid for seat in view.seats):
            self.install(node, view)
        else:
            node.courier.out, node.courier.healed = True, False
            self.on(node, lambda: self.come_in(node), 0.5)
        self.do(node, node.views.begin())
        self.on(node, lambda: self.train(node), 0.1)

    def come_in(self, node: Node) -> None:
        if node.courier.out and node.views is not None:
            self.event(node, "ready", "model")

    def die(self, node: Node) -> None:
        node.alive = False
        for pair in [pair for pair in self.wires if node.uid in pair]:
            self.snap(pair)

    def start_again(self, label: int) -> None:
        node = self.nodes[self.by_label[label]]
        if not node.alive and label != FOUNDER and node.uid not in self.leavers:
            self.enter(self.born(label, self.disk.get(label)))

    # Events and effects.

    def event(self, node: Node, kind: str, *what: object) -> None:
        if not node.alive or node.views is None:
            return
        if self.log is not None:
            self.log(f"{self.now:8.3f} {name(node)} <- {kind} {shown(what)}")
        self.do(node, getattr(node.views, kind)(*what))

    def do(self, node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            if self.log is not None and not isinstance(effect, Timer | Save):
                self.log(f"{self.now:8.3f} {name(node)}    -> {type(effect).__name__} {shown(effect)}")
            self.carry_out(node, effect)

    def carry_out(self, node: Node, effect: Effect) -> None:
        match effect:
            case Send(uid, message):
                self.send(node, uid, message)
            case Dial(seat):
                self.connect(node, seat.uid)
            case Knock():
                self.knock(node)
            case Drop(uid):
                self.hang_up(node, uid)
            case Timer(what, seconds):
                self.on(node, lambda: self.event(node, "timer", what), seconds)
            case Save(vote):
                self.save(node, vote)
            case Deny():
                self.die(node)
            case Say(text):
                node.said.append(text)
            case _:
                self.tell(node, effect)

    def tell(self, node: Node, effect: Effect) -> None:
        """What the courier is told."""
        match effect:
            case Freeze(number):
                self.freeze(node, number)
            case Hold():
                node.courier.hold = True
            case Install(view):
                self.install(node, view)
            case Out():
                node.courier.out, node.courier.healed, node.courier.frozen = True, False, True
                self.on(node, lambda: self.come_in(node), 0.5)

    def save(self, node: Node, vote: Vote | None) -> None:
        self.disk[node.label] = vote
        if vote is not None and vote.accepted is not None and vote.view is not None:
            self.accepted[vote.number, vote.uid] = vote.view

    # Connections.

    def together(self, a: int, b: int) -> bool:
        return self.groups.get(a, 0) == self.groups.get(b, 0)

    def connect(self, node: Node, uid: int) -> None:
        """Dial; a new connection takes the place of one that there is."""

        def arrive() -> None:
            other = self.nodes[uid]
            reached = other.alive and other.views is not None and self.together(node.uid, uid)
            if not reached or not node.alive or self.now < other.stopped_until:
                late = 0.0 if self.together(node.uid, uid) and not other.alive else SILENCE
                self.on(node, lambda: self.event_lost(node, uid, "refused"), late)
                return
            wire = Wire((node.uid, uid))
            self.wires[frozenset((node.uid, uid))] = wire
            hello = node.views.greeting if node.views is not None else first_word(node, self.size)
            self.post(wire, node.uid, lambda: self.event(other, "hello", hello))
            if node.views is not None:
                self.event(node, "met", uid)

        self.on(node, arrive, self.delay())

    def event_lost(self, node: Node, uid: int, why: str) -> None:
        wire = self.wires.get(frozenset((node.uid, uid)))
        if wire is None or not wire.up:
            self.event(node, "lost", uid, why)

    def post(self, wire: Wire, src: int, call: Callable[[], None]) -> None:
        """In order, when it can get through; lost when the connection is."""
        dst = wire.ends[0] if wire.ends[1] == src else wire.ends[1]
        wire.at[src] = max(wire.at.get(src, 0.0), self.now) + self.delay()
        other = self.nodes[dst]

        def arrive() -> None:
            if not wire.up or not self.current(wire):
                return
            if not self.together(*wire.ends):
                self.on(
                    other, arrive, (int(10 * self.now + 1e-6) + 1) / 10 - self.now
                )  # at the same instant for all that wait: in order
            else:
                call()

        self.on(other, arrive, wire.at[src] - self.now)

    def current(self, wire: Wire) -> bool:
        return self.wires.get(frozenset(wire.ends)) is wire

    def send(self, node: Node, uid: int, message: Message) -> None:
        wire = self.wires.get(frozenset((node.uid, uid)))
        if wire is not None and wire.up:
            other = self.nodes[uid]
            self.post(wire, node.uid, lambda: self.hear(other, node.uid, message))
            if self.random.random() < 0.02:
                self.post(wire, node.uid, lambda: self.hear(other, node.uid, message))

    def hear(self, node: Node, uid: int, message: Message) -> None:
        if node.views is not None:
            self.event(node, "heard", uid, message)
            return
        match message:
            case Decide(view):
                self.seat_in(node, view, uid)
            case Elsewhere(leader):
                self.hang_up(node, uid)
                self.connect(node, leader.uid)
            case Denied():
                self.hang_up(node, uid)
            case Waiting():
                pass

    def hang_up(self, node: Node, uid: int) -> None:
        pair = frozenset((node.uid, uid))
        wire = self.wires.get(pair)
        if wire is not None and wire.up:
            other = self.nodes[uid]
            self.post(wire, node.uid, lambda: (self.wires.pop(pair), self.event(other, "lost", node.uid, "closed")))  # type: ignore[func-returns-value]

    def snap(self, pair: frozenset[int], seconds: float = 0.0) -> None:
        """The connection ends without a word: each end notices by itself."""
        wire = self.wires.get(pair)
        if wire is None or not wire.up:
            return
        wire.up = False
        del self.wires[pair]
        for uid, other in (wire.ends, wire.ends[::-1]):
            node = self.nodes[uid]
            self.on(node, lambda node=node, other=other: self.noticed(node, other), seconds + self.delay())

    def noticed(self, node: Node, other: int) -> None:
        if frozenset((node.uid, other)) not in self.wires:
            self.event(node, "lost", other, "closed")

    # Faults.

    def strike(self, fault: Fault) -> None:
        if self.log is not None:
            self.log(f"{self.now:8.3f} *** {fault}")
        match fault.kind:
            case "kill":
                self.die(self.node(fault.what[0]))
            case "restart":
                self.start_again(fault.what[0])
            case "snap":
                self.snap(frozenset(self.by_label[label] for label in fault.what))
            case "stop":
                self.stop(self.node(fault.what[0]), fault.seconds)
            case "cut":
                self.cut({self.by_label[label] for label in fault.what}, fault.seconds)
            case "suspect":
                one, other = (self.node(label) for label in fault.what)
                self.event(one, "suspect", other.uid, "its data connection broke")
            case "leave":
                node = self.node(fault.what[0])
                self.event(node, "leave")
                self.leavers.add(node.uid)
                self.on(node, lambda: self.die(node), 0.3)

    def node(self, label: int) -> Node:
        return self.nodes[self.by_label[label]]

    def stop(self, node: Node, seconds: float) -> None:
        node.stopped_until = self.now + seconds
        if seconds > SILENCE:
            for pair in [pair for pair in self.wires if node.uid in pair]:
                self.after(SILENCE * (1 + self.random.random() / 4), lambda pair=pair: self.snap(pair))

    def cut(self, uids: set[int], seconds: float) -> None:
        group = self._order
        for uid in uids:
            self.groups[uid] = group
        for pair in list(self.wires):
            if len(pair & uids) == 1 and seconds > SILENCE:
                self.after(SILENCE * (1 + self.random.random() / 4), lambda pair=pair: self.silent(pair))
        self.after(seconds, lambda: [self.groups.pop(uid, None) for uid in uids if self.groups.get(uid) == group])  # type: ignore[func-returns-value]

    def silent(self, pair: frozenset[int]) -> None:
        if not self.together(*pair):
            self.snap(pair, self.random.random() / 2)

    def calm(self) -> None:
        self.groups.clear()
        for node in self.nodes.values():
            node.stopped_until = 0.0
        for label in range(self.size):
            if not self.node(label).alive:
                self.start_again(label)

    # Couriers.

    def train(self, node: Node) -> None:
        """One thing that a trainer or courier does by itself, every now and then."""
        courier = node.courier
        self.on(node, lambda: self.train(node), 0.15 + 0.2 * self.random.random())
        view = courier.view
        if view is None or courier.out or courier.frozen or courier.held or courier.settling:
            return
        if not courier.begun:
            courier.begun = True
            if courier.hold and courier.fence:
                courier.held = True
                self.event(node, "fence", courier.round)
                return
        parts = self.parts.setdefault((view.number, courier.round), set())
        parts.add(node.uid)
        takers = frozenset(seat.uid for seat in view.seats)
        if view.number > 1 and courier.round < view.entry:
            takers = frozenset(report.uid for report in view.reports if report.since <= courier.round)
        if parts >= takers:
            courier.done[min(set(range(BUCKETS)) - set(courier.done))] = (view.number, takers)
            self.finish(node)
        if not courier.healed and self.random.random() < 0.3:
            courier.healed = any(self.has_model(seat.uid) for seat in view.seats)

    def has_model(self, uid: int) -> bool:
        node = self.nodes[uid]
        return node.alive and node.courier.healed

    def finish(self, node: Node) -> None:
        courier = node.courier
        if len(courier.done) == BUCKETS:
            courier.history[courier.round] = tuple(courier.done[bucket] for bucket in range(BUCKETS))
            courier.round, courier.begun, courier.done = courier.round + 1, False, {}

    def freeze(self, node: Node, number: int) -> None:
        if node.courier.view is None or node.courier.view.number != number:
            raise Broken(f"{name(node)} is to freeze view {number}, and is not in it")
        node.courier.frozen = True
        report = node.courier.report(node.uid)
        self.reports[number, node.uid] = report
        self.on(node, lambda: self.event(node, "frozen", number, report), self.delay())

    def install(self, node: Node, view: View) -> None:
        self.check_install(node, view)
        courier = node.courier
        if courier.view is None or courier.out:
            courier.round, courier.begun, courier.done, courier.history = view.entry, False, {}, {}
            courier.healed = view.number == 1 or next(s.healed for s in view.seats if s.uid == node.uid)
        courier.view, courier.out, courier.frozen, courier.hold, courier.held = view, False, False, False, False
        courier.settling = False
        settlement = settle(view, BUCKETS)
        if settlement is None or courier.round != settlement.round:
            return
        if not settlement.share:
            courier.done = {}
            return
        courier.settling = True
        holders = [view.seats[rank].uid for rank in settlement.holders]
        self.on(node, lambda: self.share(node, view, holders), self.delay())

    def share(self, node: Node, view: View, holders: list[int]) -> None:
        """Take from the holders what we lack, unless the view has changed again or they are gone."""
        courier = node.courier
        if courier.view is not view or courier.frozen:
            return
        others = [self.nodes[uid] for uid in holders]
        if not all(other.alive and other.courier.view is view for other in others):
            self.on(node, lambda: self.share(node, view, holders), 0.2)
            return
        courier.begun, courier.settling = True, False
        for bucket, other in enumerate(others):
            finished = other.courier.history.get(courier.round)
            courier.done[bucket] = finished[bucket] if finished else other.courier.done[bucket]
        self.finish(node)

    # Promises.

    def check_install(self, node: Node, view: View) -> None:
        if self.decided.setdefault(view.number, view) != view:
            raise Broken(f"{name(node)} is told another view {view.number} than others")
        if node.courier.view is not None and view.number <= node.courier.view.number:
            raise Broken(f"{name(node)} goes back to view {view.number}")
        if view.number == 1:
            return
        base = self.decided.get(view.number - 1)
        for report in view.reports:
            if self.reports.get((view.number - 1, report.uid)) != replace(report, since=0):
                raise Broken(f"view {view.number} has a report that agent {report.uid} did not make")
        if base is not None:
            self.check_successor(base, view)
        rounds = {report.round for report in view.reports}
        if max(rounds) - min(rounds) > 1:
            raise Broken(f"rounds {rounds} lie apart in view {view.number}")

    def check_successor(self, base: View, view: View) -> None:
        reported = {report.uid for report in view.reports}
        old = {seat.uid for seat in base.seats}
        if {seat.uid for seat in view.seats} & old != reported:
            raise Broken(f"view {view.number} keeps members that did not report")
        agreed = [uid for uid in base.voters if self.accepted.get((view.number, uid)) == view or uid in self.leavers]
        if len(agreed) < majority(base.voters):
            raise Broken(f"view {view.number} was accepted by {agreed} of {base.voters}")

    def check_history(self) -> None:
        """Who was together all the time has the same results."""
        last = max(self.decided.values(), key=lambda view: view.number)
        couriers = [self.nodes[s.uid].courier for s in last.seats if self.nodes[s.uid].alive]
        couriers = [c for c in couriers if c.view is last and not c.out]
        for one in couriers:
            for other in couriers:
                for round in one.history.keys() & other.history.keys():
                    if one.history[round] != other.history[round]:
                        raise Broken(f"round {round} has two results: {one.history[round]}, {other.history[round]}")

    def possible(self) -> bool:
        """Can a view come at all: is a majority here, and the model?"""
        known = [node.views.view for node in self.nodes.values() if node.views is not None]
        last = max(known, key=lambda view: view.number)
        votes = {vote.uid for label, vote in self.disk.items() if vote is not None and self.node(label).alive}
        here = [uid for uid in last.voters if (uid in self.nodes and self.nodes[uid].alive) or uid in votes]
        model = [s for s in last.seats if self.nodes[s.uid].alive and self.nodes[s.uid].courier.healed]
        left = [uid for uid in last.voters if uid in self.leavers]
        return last.number == 0 or (len(here) >= majority(last.voters) and bool(model) and not left)

    def settled(self) -> bool:
        """Is everybody that lives in one view, with the model?"""
        if not self.decided:
            return False
        last = max(self.decided.values(), key=lambda view: view.number)
        alive = {uid for uid, node in self.nodes.items() if node.alive and node.label != FOUNDER}
        if {seat.uid for seat in last.seats} != alive:
            return False
        return all(self.nodes[uid].courier.view is last and self.nodes[uid].courier.healed for uid in alive)


def name(node: Node) -> str:
    return f"{'founder' if node.label == FOUNDER else f'agent {node.label}'}({node.uid})"


def shown(what: object) -> str:
    """An event or effect, in few words."""
    match what:
        case View():
            return f"view {what.number} of {[s.uid for s in what.seats]} led by {what.leader}"
        case Seat():
            return f"{what.uid}"
        case Ballot():
            return f"{what.turn}.{what.uid}"
        case tuple():
            return ", ".join(map(shown, what))
        case msgspec.Struct():
            return f"{type(what).__name__}({', '.join(shown(getattr(what, f)) for f in what.__struct_fields__)})"
        case _ if dataclasses.is_dataclass(what):
            return ", ".join(shown(getattr(what, f.name)) for f in dataclasses.fields(what))
        case _:
            return str(what)


def seat_of(node: Node) -> Seat:
    return Seat(node.uid, node.label, "here", node.uid, (), (f"at:{node.uid}",), node.courier.healed)


def first_word(node: Node, size: int) -> Hello:
    return Hello(seat_of(node), size, 0, node.vote)


def schedule(seed: int) -> tuple[int, list[Fault]]:
    """How many agents, and what happens to them."""
    rng = random.Random(seed ^ 0x5EED)
    size = rng.choice((1, 2, 3, 3, 4, 5))
    labels = [FOUNDER, *range(size)]
    faults = []
    for _ in range(rng.randint(1, 12)):
        at = rng.choice((1.0, 1.0, 3.0, 8.0)) + rng.random() * rng.choice((0.05, 0.5, 10.0))
        kind = rng.choice(("kill", "kill", "restart", "restart", "restart", "snap", "stop", "cut", "suspect"))
        if kind in ("snap", "suspect"):
            among = labels if kind == "snap" else labels[1:]
            if len(among) > 1:
                faults.append(Fault(at, kind, tuple(rng.sample(among, 2))))
        elif kind == "cut":
            side = rng.sample(labels, rng.randint(1, len(labels) - 1))
            faults.append(Fault(at, kind, tuple(side), rng.choice((0.5, 3.0, 8.0)) * (1 + rng.random())))
        elif kind == "stop":
            faults.append(Fault(at, kind, (rng.choice(labels),), rng.choice((0.5, 3.0, 8.0)) * (1 + rng.random())))
        else:
            faults.append(Fault(at, kind, (rng.choice(labels),)))
    if rng.random() < 0.1:
        faults.append(Fault(12 * rng.random(), "leave", (rng.choice(labels[1:]),)))
    return size, sorted(faults, key=lambda fault: fault.at)


def play(seed: int, size: int, faults: list[Fault], log: Callable[[str], None] | None = None) -> World:
    """One world from its beginning to its end.

    Raises:
        Broken: a promise does not hold.
    """
    world = World(seed, size, faults, log=log)
    last = max((fault.at + fault.seconds for fault in faults), default=0.0)
    world.run(last + 0.5)
    world.calm()
    settled = world.run(world.now + CALM, world.settled)
    world.check_history()
    if not settled and world.possible():
        raise Broken("the faults are over, and no view has everybody")
    return world


def attempt(seed: int, size: int, faults: list[Fault]) -> Exception | None:
    try:
        play(seed, size, faults)
    except Exception as e:
        return e
    return None


def shrink(seed: int, size: int, faults: list[Fault]) -> list[Fault]:
    """As few faults as still break it."""
    at = 0
    while at < len(faults):
        fewer = faults[:at] + faults[at + 1 :]
        if attempt(seed, size, fewer) is None:
            at += 1
        else:
            faults = fewer
    return faults


def explore(seeds: range) -> tuple[int, str] | None:
    """The first seed that breaks a promise, and how, in words; None when none does."""
    for seed in seeds:
        size, faults = schedule(seed)
        error = attempt(seed, size, faults)
        if error is not None:
            least = shrink(seed, size, faults)
            error = attempt(seed, size, least) or error
            words = [f"seed {seed}, {size} agents: {type(error).__name__}: {error}", *map(str, least)]
            return seed, "\n".join(words)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int, nargs="?", default=0)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--log", action="store_true", help="play one seed, its schedule shrunk, event by event")
    options = parser.parse_args()
    if options.log:
        size, faults = schedule(options.first)
        play(options.first, size, shrink(options.first, size, faults), print)
        return
    begun = time.monotonic()
    found = explore(range(options.first, options.first + options.count))
    print(found[1] if found else f"{options.count} seeds hold", f"({time.monotonic() - begun:.1f} s)")
    sys.exit(found is not None)


if __name__ == "__main__":
    main()
