"""One slot at one of its holders: a state machine, which every holder of the slot feeds the same messages in order.

Theory of operation. There are two kinds of time. An agent's *clock* counts the steps that it pushed; a slot's *version*
counts the pushes that were applied to it, or, with staleness 0, the steps that all took together. Each push names both:
its agent's clock, by which a repeat is known, and the version of the values that its gradient was computed with.

* With staleness 0, pushes of one clock wait for each other. When every active member's is there, one optimizer step is
  taken with Σ weight g / n, summed in the order of members: the bits do not depend on who came first. What the step
  changes is kept, for a death may show that it was not everywhere: then it is taken back (:meth:`Shard.settle`).
* Else a push is applied when it comes, as 1/n of a step: its learning rate is lr · weight / n, so n agents together
  move as one step of them all. (Of a table it is the gradient that is scaled: rows are touched by few, and with an
  optimizer that divides by the gradients' size each makes the step that it would make with all of them.) One without
  weight moves nothing. How many others came between is its staleness, tau. A drift lands as 1/n of an outer step.

Whether an agent may go on is another question (:meth:`Shard.may`), asked when it is to be answered: with staleness k,
when nobody who is active is more than k clocks behind.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stretto.errors import ProtocolError
from stretto.server.rules import Rule
from stretto.server.sent import Sent
from stretto.server.undo import Before
from stretto.server.update import Push, Rows, Update, check
from stretto.server.value import Server
from stretto.server.waiting import Waiting

if TYPE_CHECKING:
    from stretto.server.space import Slot


class Shard:
    """The values of one slot (flat, in the memory that they were given in), and what was done to them.

    Pushes, pauses, and entering and settling may change them in place: where they are still being sent, :meth:`move`
    first.

    Attributes:
        version: pushes applied, or with staleness 0 steps.
        clocks: of each member the clock of its last push.
        members: uids, by rank.
        staleness: how often each tau was met.
    """

    def __init__(self, slot: Slot, server: Server, rule: Rule, values: Tensor) -> None:
        self.slot, self.server, self.values = slot, server, values
        self.version = 0
        self.clocks: dict[int, int] = {}
        self.members: tuple[int, ...] = ()
        self.staleness: Counter[int] = Counter()
        self._numbers = rule.groups * len(rule.numbers)
        self._stepper = rule.over(slot, values)
        self._paused: set[int] = set()
        self._waiting = Waiting()
        self._sent = Sent(server.compensate)
        self._changed = torch.zeros(slot.elements // slot.width if slot.width else 0, dtype=torch.int64)
        """Of each row of a table the version since which it is as it is."""
        self._before = Before(self._stepper, self._changed)
        self._counted: Counter[int] | None = None
        """What ``staleness`` was before the last step; None: that cannot be taken back."""

    def enter(self, members: tuple[int, ...], floor: int | None = None) -> None:
        """These are in now, by rank. Who is gone leaves no waiting push; who is new begins at clock ``floor``.

        Without one it begins at the least clock of the others; with staleness 0, always with the step that is next.
        After a death, :meth:`settle` first.
        """
        gone = self.clocks.keys() - set(members)
        staying = [self.clocks[uid] for uid in members if uid in self.clocks]
        begin = floor if floor is not None else min(staying, default=0)
        if self.server.staleness == 0:
            begin = self.version
        self.clocks = {uid: self.clocks.get(uid, begin) for uid in members}
        self.members = members
        self._paused &= set(members)
        self._sent.keep(members)
        self._waiting.forget(gone)
        self._together()

    def push(self, push: Push, update: Update) -> bool:
        """Apply it, or keep it until it can be; False: it was there before. ``update`` is not read after this call.

        Raises:
            ProtocolError: from no member, with a clock or a version that cannot be, or not of this slot.
            UsageError: a table cannot be stepped with these numbers.
        """
        if push.uid not in self.clocks:
            raise ProtocolError(f"agent {push.uid} pushed to slot {self.slot.number} and is no member: {self.members}")
        if push.clock <= self.clocks[push.uid]:
            return False
        if push.have > self.version:
            raise ProtocolError(
                f"agent {push.uid} pushed what it computed with version {push.have} of slot {self.slot.number}, "
                f"which is at {self.version}"
            )
        check(push, update, self.slot, self._numbers)
        if self.server.staleness == 0:
            self._wait(push, update)
        else:
            self._arrive(push, update)
        return True

    def may(self, uid: int, clock: int) -> bool:
        """May the answer to that clock of ``uid`` go?"""
        bound = self.server.staleness
        if bound is None:
            return True
        return self.version >= clock if bound == 0 else self.slowest >= clock - bound

    def pause(self, uid: int) -> None:
        """It has nothing to train now: nobody waits for it, until it pushes or is resumed."""
        self._paused.add(uid)
        self._together()

    def resume(self, uid: int, clock: int) -> None:
        """It trains again, having pushed ``clock`` steps, as it counts."""
        self._paused.discard(uid)
        self.clocks[uid] = max(self.clocks[uid], clock)

    @property
    def fastest(self) -> int:
        """The greatest clock of all members."""
        return max(self.clocks.values(), default=0)

    @property
    def slowest(self) -> int:
        """The least clock of the active members; where none is active, the greatest of all."""
        active = [clock for uid, clock in self.clocks.items() if uid not in self._paused]
        return min(active) if active else max(self.clocks.values(), default=0)

    def sent(self, uid: int, rows: Tensor | None = None) -> None:
        """The values of now, or these rows of them, go to ``uid``: its next gradient is computed with them.

        What is compensated depends on it, so each holder of the slot is told, in the same order.
        """
        if self.server.compensate:
            self._sent.note(uid, self._rows, rows)

    def rows_since(self, version: int) -> Tensor:
        """The rows of a table (int64, ascending) that were stepped after ``version``."""
        return (self._changed > version).nonzero().flatten()

    def settle(self, clock: int) -> None:
        """With staleness 0: all are at ``clock``, this version or the one before. What waits is forgotten.

        Raises:
            ProtocolError: it is another version than these.
            ValueError: with another staleness versions are no clocks.
        """
        if self.server.staleness != 0:
            raise ValueError(f"slot {self.slot.number} of {self.server} cannot settle: each agent has its own clock")
        if clock == self.version - 1 and self._counted is not None:
            self._before.restore()
            self.version, self.staleness, self._counted = clock, self._counted, None
        if clock != self.version:
            raise ProtocolError(
                f"slot {self.slot.number} is at version {self.version} and cannot go to {clock}; "
                f"{'only one step' if self._counted is not None else 'no step'} back is kept"
            )
        self._waiting.forget(self.members)
        self.clocks = dict.fromkeys(self.members, clock)

    def move(self, memory: Tensor | None = None) -> None:
        """Go on in ``memory`` (flat, of the slot), or in new one, so that the values in the old one stay."""
        self.values = self.values.clone() if memory is None else memory.copy_(self.values)
        self._stepper.move(self.values)

    def state(self) -> dict[str, Any]:
        """Everything but the step before, in plain values; the tensors are those that are written."""
        return {
            "version": self.version,
            "clocks": self.clocks,
            "members": self.members,
            "paused": self._paused,
            "staleness": self.staleness,
            "values": self.values,
            "optimizer": self._stepper.state(),
            "sent": self._sent.values,
            "changed": self._changed,
            "waiting": self._waiting.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there; tensors are copied. No step back is kept.

        Raises:
            ProtocolError: it is of another slot.
        """
        if state["values"].shape != self.values.shape:
            raise ProtocolError(
                f"slot {self.slot.number} has {len(self.values)} elements, and was given {state['values'].numel()}"
            )
        self.version, self.members = state["version"], tuple(state["members"])
        self.clocks, self.staleness = dict(state["clocks"]), Counter(state["staleness"])
        self._paused = set(state["paused"])
        self.values.copy_(state["values"])
        self._stepper.load(state["optimizer"])
        self._sent.values = {uid: x.clone() for uid, x in state["sent"].items()}
        self._changed.copy_(state["changed"])
        self._waiting.load(state["waiting"])
        self._counted = None

    @property
    def _rows(self) -> Tensor:
        """The values, in rows where they are of a table."""
        return self.values.view(-1, self.slot.width) if self.slot.width else self.values

    def _arrive(self, push: Push, update: Update) -> None:
        tau = self.version - push.have
        scale = push.weight / len(self.members) / (1 + tau if self.server.damped else 1)
        if self.server.compensate:
            update = self._sent.compensated(push.uid, update, self._rows)
        if scale and isinstance(update, Rows):
            self._stepper.step(Rows(update.rows, update.values * scale), push.hyper, 1.0)
        elif scale:
            self._stepper.step(update, push.hyper, scale)
        self._came(push)
        self._stepped(update)
        self.staleness[tau] += 1

    def _wait(self, push: Push, update: Update) -> None:
        if push.clock != self.version + 1:
            raise ProtocolError(
                f"agent {push.uid} pushed clock {push.clock} to slot {self.slot.number}, "
                f"where clock {self.version + 1} is next"
            )
        self._came(push)
        self._waiting.add(push, update)
        if not self._together():
            self._waiting.own(push.uid)

    def _together(self) -> bool:
        """One step with the mean, if all who are active have pushed."""
        if not self._waiting or any(uid not in self._waiting for uid in self.members if uid not in self._paused):
            return False
        pushes, update = self._waiting.mean(self.members)
        self._counted = self.staleness.copy()
        self._before.keep(update)
        self._stepper.step(update, pushes[0].hyper, 1.0)
        self.staleness.update(self.version - push.have for push in pushes)
        self._stepped(update)
        self._waiting.forget(self.members)
        return True

    def _came(self, push: Push) -> None:
        self.clocks[push.uid] = push.clock
        self._paused.discard(push.uid)

    def _stepped(self, update: Update) -> None:
        self.version += 1
        if isinstance(update, Rows):
            self._changed[update.rows] = self.version
