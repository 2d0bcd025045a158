"""What was pushed to a simulated parameter server, carried out, answered and read; and whether that is right.

Theory of operation. A slot's states form a tree: a push that is carried out (with staleness 0: a step of all) leads
from one to the next, wherever it is carried out. Holders that carried out the same are in the same state, so a state
that only a dead holder had reached is a branch that nobody grows any more. What all ended with descends, in each slot,
from one chain of states: the *history*. It is linearisable (Herlihy and Wing, TOPLAS 1990) if a push takes effect once,
before it is answered, and whatever is read is a state of the history, no earlier than what the same agent read before.

What must hold, for staleness k, of the answer to an agent's push of clock c, given in state S of a slot:

* k = none: S has that push;
* k >= 1: S has that push, and of every member that is active in S (that is asked for samples, and has some) all pushes
  of clocks up to c - k: it will push none of these to this slot later;
* k = 0: S is step c or a later one, and has the pushes of clock c of all that were active.

Who goes on from clock c has such an answer of each slot: it is at most k steps ahead of the slowest who is active.

With staleness 0 a death may leave some slots a step ahead of the others. That step is undone, so it may have been read;
but not of every slot: nobody computed anything with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from stretto.codecs import Identity
from stretto.core import Strategy
from stretto.server.leases import Lease
from stretto.server.value import Server
from stretto.simulate.promises import Broken

Push: TypeAlias = tuple[int, int]
"""Whose (uid), and its clock."""


@dataclass(eq=False, slots=True)
class State:
    """A slot's values, by what led to them: ``pushes`` of so many ``members``; ``tau``: how stale the one push was.

    ``whole``: somebody read it when it had read as much of all slots.
    """

    slot: int
    before: State | None
    version: int
    pushes: tuple[Push, ...]
    members: int
    tau: int
    values: Tensor
    whole: bool = False

    @property
    def way(self) -> list[State]:
        """From the beginning to here."""
        found, at = [], self
        while True:
            found.append(at)
            if at.before is None:
                return found[::-1]
            at = at.before

    def has(self, other: State) -> bool:
        """Is that this one, or one that led here?"""
        at: State | None = self
        while at is not None and at.version > other.version:
            at = at.before
        return at is other


@dataclass(frozen=True, slots=True)
class Pushed:
    """What an agent computed its part from: of each slot a state (any of some, where their values are the same).

    ``leases``: whose samples it trained, one after the other, each by a step of its own.
    """

    leases: Sequence[Lease]
    weight: float
    read: Mapping[int, Sequence[State]]


@dataclass(frozen=True, slots=True)
class Answer:
    """To whose push, in which state; and of whom no push up to ``least`` was to be missing in it."""

    state: State
    push: Push
    active: tuple[int, ...]
    least: int


@dataclass(slots=True)
class History:
    """All that became of the slots of one run.

    Attributes:
        lead: how far ahead of the slowest somebody went on, at most.
        coded: parts are pushed by a lossy codec.
        leases: by uid, and the number of the last, those that are pushed together.
        reads: of each agent and slot what it read last: a state, or any of some with the same values.
        places: where a slot's elements are in the weights.
    """

    server: Server
    plain: bool = True
    lead: int = 0
    places: dict[int, Tensor] = field(default_factory=dict)
    states: dict[tuple[object, ...], State] = field(default_factory=dict)
    pushed: dict[Push, Pushed] = field(default_factory=dict)
    leases: dict[tuple[int, int], Sequence[Lease]] = field(default_factory=dict)
    reads: defaultdict[int, dict[int, list[State]]] = field(default_factory=lambda: defaultdict(dict))
    acknowledged: set[Push] = field(default_factory=set)
    answers: dict[tuple[int, Push], Answer] = field(default_factory=dict)
    read: list[tuple[int, list[State]]] = field(default_factory=list)
    _at: defaultdict[tuple[int, int], list[State]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, strategy: Strategy) -> History | None:
        """Of a run of ``strategy``, if it has servers."""
        server = strategy.exchange
        plain = strategy.signal == "gradient" and strategy.codec == Identity()
        return cls(server, plain) if isinstance(server, Server) else None

    # What happens at holders

    def begun(self, slot: int, version: int, values: Tensor) -> State:
        """It holds these, whatever led to them."""
        key = slot, version, values.numpy().tobytes()
        return self._known(key, State(slot, None, version, (), 0, 0, values.clone()))

    def stepped(self, before: State, pushes: tuple[Push, ...], members: int, tau: int, values: Tensor) -> State:
        """From ``before`` these lead to ``values``.

        Raises:
            Broken: at another holder they led elsewhere.
        """
        after = State(before.slot, before, before.version + 1, pushes, members, tau, values.clone())
        found = self._known((id(before), pushes, members, tau), after)
        if not torch.equal(found.values, values):
            raise Broken(f"holders of slot {before.slot} carried out the same and have different values")
        return found

    def _known(self, key: tuple[object, ...], state: State) -> State:
        if key not in self.states:
            self.states[key] = state
            self._at[state.slot, state.version].append(state)
        return self.states[key]

    def answered(self, state: State, push: Push, active: Mapping[int, int]) -> None:
        """A holder lets the answer go; ``active``: whom it waits for, and their clocks.

        Raises:
            Broken: too early.
        """
        clock, bound = push[1], self.server.staleness
        least = clock if not bound else clock - bound
        if bound == 0 and state.version < clock:
            raise Broken(f"slot {state.slot} answers clock {clock} in version {state.version}")
        if bound:
            behind = {uid: at for uid, at in active.items() if at < least}
            if behind:
                raise Broken(f"slot {state.slot} answers clock {clock} while {behind} are more than {bound} behind")
            self.lead = max(self.lead, clock - min(active.values(), default=clock))
        self.answers[id(state), push] = Answer(state, push, tuple(active) if bound is not None else (), least)

    # What happens at agents

    def pushes(self, uid: int, clock: int, lease: int, weight: float) -> None:
        """``uid`` pushes what it computed with what it read last."""
        self.pushed[uid, clock] = Pushed(self.leases.get((uid, lease), ()), weight, dict(self.reads[uid]))

    def reading(self, uid: int, slot: int, version: int, values: Tensor) -> None:
        """``uid`` is given these values.

        Raises:
            Broken: no holder had them, or it had later ones before.
        """
        found = [s for s in self._at[slot, version] if self._inexact or torch.equal(s.values, values)]
        if not found:
            raise Broken(f"agent {uid} reads values of slot {slot}, version {version}, that no holder has had")
        before = self.reads[uid].get(slot)
        later = [s for s in found if before is None or any(self._follows(s, b) for b in before)]
        if not later:
            assert before is not None
            raise Broken(f"agent {uid} reads version {version} of slot {slot}, having read version {before[0].version}")
        self.reads[uid][slot] = later
        self.read.append((uid, later))

    def _follows(self, after: State, before: State) -> bool:
        """May one who has read the one read the other?"""
        undone = before.before if self.server.staleness == 0 and not before.whole else None
        return after.has(before) or (undone is not None and after.has(undone))

    def goes_on(self, uid: int, push: Push | None) -> None:
        """``uid`` has read of all slots; ``push`` is acknowledged."""
        if push is not None:
            self.acknowledged.add(push)
        for states in self.reads[uid].values():
            for state in states if len(states) == 1 else ():
                state.whole = True

    # The end

    def check(self, final: Mapping[int, State], samples: int, epochs: int) -> None:
        """That the histories that ended so are right.

        Raises:
            Broken: one is not.
        """
        for end in final.values():
            self._check_slot(end)
        self._check_samples(final[0], samples, epochs)

    def final(self, ended: Iterable[int]) -> dict[int, State]:
        """What all of these agents read last, of each slot.

        Raises:
            Broken: they read different things.
        """
        first, *others = (self.reads[uid] for uid in ended)
        final = {}
        for slot, states in first.items():
            same = [s for s in states if all(s in other[slot] for other in others)]
            if not same:
                raise Broken(f"agents have ended with different states of slot {slot}")
            final[slot] = max(same, key=self._answered_for)
        return final

    def _answered_for(self, end: State) -> int:
        """How much of what was acknowledged led there: it tells states apart that agents cannot."""
        return len(self.acknowledged.intersection(push for state in end.way for push in state.pushes))

    def _check_slot(self, end: State) -> None:
        order = [push for state in end.way for push in state.pushes]
        place = {push: at for at, push in enumerate(order)}
        if len(place) < len(order):
            twice = sorted(push for push in place if order.count(push) > 1)
            raise Broken(f"pushes {twice} were carried out more than once in slot {end.slot}")
        missing = sorted(push for push in self.acknowledged if push not in place)
        if missing:
            raise Broken(f"pushes {missing} were acknowledged and are not in the history of slot {end.slot}")
        for uid, states in self.read:
            some = states[0]
            kept = any(end.has(state) for state in states)
            if some.slot == end.slot and not kept and (some.whole or self.server.staleness != 0):
                raise Broken(f"agent {uid} has read version {some.version} of slot {end.slot}, which is lost")
        self._check_answers(end, order, place)

    def _check_answers(self, end: State, order: Sequence[Push], place: Mapping[Push, int]) -> None:
        """What was answered, and survived, had what it was to have."""
        until, length = {}, 0
        for state in end.way:
            length += len(state.pushes)
            until[id(state)] = length
        for answer in self.answers.values():
            at = until.get(id(answer.state))
            if at is None or answer.push not in place:
                continue  # (a repeat, answered by a holder that has died)
            late = [p for p in order[at:] if p == answer.push or (p[0] in answer.active and p[1] <= answer.least)]
            if late:
                raise Broken(f"slot {end.slot} answered {answer.push} before it had carried out {late}")

    def _check_samples(self, end: State, samples: int, epochs: int) -> None:
        """The pushes that slot 0 has carried out are of every sample once an epoch."""
        times: dict[tuple[int, int], int] = {}
        pushes = [self.pushed[push] for state in end.way for push in state.pushes]
        for lease in (lease for push in pushes if push.weight for lease in push.leases):
            for at in (i for a, b in lease.ranges for i in range(a, b)):
                times[lease.epoch, at] = times.get((lease.epoch, at), 0) + 1
        odd = [(e, i) for e in range(epochs) for i in range(samples) if times.get((e, i), 0) != 1]
        if odd:
            raise Broken(f"sample {odd[0][1]} was pushed {times.get(odd[0], 0)} times in epoch {odd[0][0]}")

    @property
    def _inexact(self) -> bool:
        """Agents read something else than holders have."""
        return self.server.pull != Identity()

    @property
    def exact(self) -> bool:
        """Does what was pushed follow from what was read?"""
        return self.plain and not self._inexact
