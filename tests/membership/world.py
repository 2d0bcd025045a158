"""A world: a coordinator and its agents, with toys for couriers, to whom the faults of a schedule happen."""

from __future__ import annotations

from collections.abc import Callable

from toys import BUCKETS, Fault, Node, seat_of
from wires import SILENCE, Wires

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
from stretto.membership.messages import FOUNDER, Decide, Denied, Elsewhere, Message, View, Vote, Waiting
from stretto.membership.settle import settle
from stretto.membership.views import Views
from stretto.membership.votes import majority
from stretto.simulate.promises import Broken, Promises
from stretto.simulate.shown import shown


class World(Wires):
    """All of one run, from its seed."""

    def __init__(self, seed: int, size: int, faults: list[Fault], *, log: Callable[[str], None] | None = None) -> None:
        super().__init__(seed, size)
        self.log = log
        self.promises = Promises()
        self.by_label: dict[int, int] = {}
        self.disk: dict[int, Vote | None] = {}
        self.parts: dict[tuple[int, int], set[int]] = {}
        self._uids = 100
        for fault in faults:
            self.after(fault.at, lambda fault=fault: self.strike(fault))
        founder = self.born(FOUNDER)
        founder.views = Views.founder(seat_of(founder), size, Network())
        self.do(founder, founder.views.begin())
        for label in range(size):
            self.enter(self.born(label))

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
        if not node.alive and label != FOUNDER and node.uid not in self.promises.leavers:
            self.enter(self.born(label, self.disk.get(label)))

    # Events and effects.

    def event(self, node: Node, kind: str, *what: object) -> None:
        if not node.alive or node.views is None:
            return
        if self.log is not None:
            self.log(f"{self.now:8.3f} {node} <- {kind} {shown(what)}")
        self.do(node, getattr(node.views, kind)(*what))

    def do(self, node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            if self.log is not None and not isinstance(effect, Timer | Save):
                self.log(f"{self.now:8.3f} {node}    -> {type(effect).__name__} {shown(effect)}")
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
        self.promises.note_vote(vote)

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

    def knock(self, node: Node) -> None:
        places = sorted(u for u, other in self.nodes.items() if other.alive and other.views is not None)
        places = [uid for uid in places if uid != node.uid and not self.linked(uid, node.uid)]
        if places:
            self.connect(node, places[node.tries % len(places)])
        node.tries += 1

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
                self.promises.leavers.add(node.uid)
                self.on(node, lambda: self.die(node), 0.3)

    def node(self, label: int) -> Node:
        return self.nodes[self.by_label[label]]

    def stop(self, node: Node, seconds: float) -> None:
        node.stopped_until = self.now + seconds
        if seconds > SILENCE:
            for pair in [pair for pair in self.wires if node.uid in pair]:
                self.after(SILENCE * (1 + self.random.random() / 4), lambda pair=pair: self.snap(pair))

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
            raise Broken(f"{node} is to freeze view {number}, and is not in it")
        node.courier.frozen = True
        report = node.courier.report(node.uid)
        self.promises.note_report(number, report)
        self.on(node, lambda: self.event(node, "frozen", number, report), self.delay())

    def install(self, node: Node, view: View) -> None:
        self.promises.check_install(node, view)
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

    # The end.

    def check_history(self) -> None:
        """Who was together all the time has the same results."""
        last = max(self.promises.decided.values(), key=lambda view: view.number)
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
        left = [uid for uid in last.voters if uid in self.promises.leavers]
        return last.number == 0 or (len(here) >= majority(last.voters) and bool(model) and not left)

    def settled(self) -> bool:
        """Is everybody that lives in one view, with the model?"""
        if not self.promises.decided:
            return False
        last = max(self.promises.decided.values(), key=lambda view: view.number)
        alive = {uid for uid, node in self.nodes.items() if node.alive and node.label != FOUNDER}
        if {seat.uid for seat in last.seats} != alive:
            return False
        return all(self.nodes[uid].courier.view is last and self.nodes[uid].courier.healed for uid in alive)
