"""Connections of the simulated network: reliable and in order as long as they live, however the network behaves.

Theory of operation. A line has two ends, and each way a queue. Every item that is said makes one call at the other
process, after a delay; the call takes the *first* of the queue, so nothing is overtaken. While the two are cut off,
the calls are counted instead, and made up for when they are together again. The word that an end has closed goes the
same way, behind everything that was said; a death may eat the last of what was under way.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from stretto.simulate.clock import Clock, Process

SILENCE: Final = 2.0
"""Seconds without a pulse after which the other one is taken for lost."""

_ENDED: Final = object()


class Party(Process, Protocol):
    """A process that has lines."""

    uid: int


class Ear(Protocol):
    """Who is told what comes out of the lines of one kind."""

    def heard(self, line: Line, at: Any, item: Any) -> None: ...
    def ended(self, line: Line, at: Any) -> None:
        """The other end is closed; so is this one, now."""
        ...


@dataclass(slots=True)
class _Way:
    """What is under way to one end. ``last``: when the last of it will arrive. ``held``: calls that found a cut."""

    to: Party
    items: deque[Any]
    last: float = 0.0
    held: int = 0


class Network:
    """Who can reach whom, how late; and all lines of all kinds."""

    def __init__(self, clock: Clock, rng: random.Random, scale: float) -> None:
        self.clock, self._rng = clock, rng
        self._delays = tuple(scale * delay for delay in (0.02, 0.2, 1.0))
        self._groups: dict[int, int] = {}
        self._cuts = 0
        self.lines: list[Line] = []

    def delay(self) -> float:
        draw = self._rng.random
        return self._delays[int(3 * draw())] * (1 + draw())

    def together(self, a: int, b: int) -> bool:
        return self._groups.get(a, 0) == self._groups.get(b, 0)

    def cut(self, uids: set[int], seconds: float, silent: Callable[[Line], None]) -> None:
        """For a while ``uids`` reach nobody else; ``silent`` is told of each line between, should that last."""
        self._cuts += 1
        group = self._cuts
        self._groups |= dict.fromkeys(uids, group)
        if seconds > SILENCE:
            for line in self.lines:
                if not self.together(*line.uids):
                    self.clock.after(self.patience(), None, partial(self._still, line, silent))
        self.clock.after(seconds, None, lambda: self._mend({u for u in uids if self._groups.get(u) == group}))

    def patience(self) -> float:
        return SILENCE * (1 + self._rng.random() / 4)

    def calm(self) -> None:
        self._mend(set(self._groups))

    def _still(self, line: Line, silent: Callable[[Line], None]) -> None:
        if not self.together(*line.uids):
            silent(line)

    def _mend(self, uids: set[int]) -> None:
        for uid in uids:
            del self._groups[uid]
        for line in list(self.lines):
            line.make_up()


class Line:
    """One connection of two processes."""

    __slots__ = ("_broken", "_ear", "_net", "_ways", "open", "uids")

    def __init__(self, net: Network, ear: Ear, a: Party, b: Party) -> None:
        self._net, self._ear = net, ear
        self.uids = (a.uid, b.uid)
        self.open = {a.uid, b.uid}
        self._broken = False
        self._ways = {a.uid: _Way(a, deque()), b.uid: _Way(b, deque())}
        net.lines.append(self)

    def other(self, uid: int) -> int:
        a, b = self.uids
        return b if uid == a else a

    def say(self, uid: int, item: Any) -> None:
        """From ``uid`` to the other end."""
        if uid not in self.open or self._broken:
            return
        net = self._net
        to = self.other(uid)
        way = self._ways[to]
        way.items.append(item)
        now = net.clock.now
        way.last = max(way.last, now + net.delay())
        net.clock.at(way.last, way.to, lambda: self._arrive(to, way))

    def close(self, uid: int) -> None:
        """The end of ``uid``; what it has said arrives, and then the word of it."""
        self.say(uid, _ENDED)
        self._shut(uid)

    def break_off(self, uid: int, keep: int) -> None:
        """As :meth:`close`, but only the first ``keep`` of what is under way arrive."""
        items = self._ways[self.other(uid)].items
        while len(items) > keep:
            items.pop()
        self.close(uid)

    def fall_silent(self, uid: int) -> None:
        """The end of ``uid`` is gone, and the other one is not told; it may notice (:meth:`notice`)."""
        self._shut(uid)

    def snap(self) -> None:
        """Nothing gets through any more, and both ends notice, each when it does."""
        self._broken = True
        for way in self._ways.values():
            way.items.clear()
            self._net.clock.after(self._net.delay(), way.to, partial(self.notice, way.to.uid))

    def notice(self, uid: int) -> None:
        """``uid`` finds the line to be dead, if its end is still open."""
        if uid in self.open:
            way = self._ways[uid]
            way.items.clear()
            self._shut(uid)
            self._ear.ended(self, way.to)

    def make_up(self) -> None:
        for uid, way in self._ways.items():
            held, way.held = way.held, 0
            for _ in range(held):
                self._net.clock.after(0.0, way.to, partial(self._arrive, uid, way))

    def _arrive(self, uid: int, way: _Way) -> None:
        if not self._net.together(*self.uids):
            way.held += 1
            return
        if not way.items:
            return  # lost when the other end died
        item = way.items.popleft()
        if uid not in self.open:
            return
        if item is _ENDED:
            self._shut(uid)
            self._ear.ended(self, way.to)
        else:
            self._ear.heard(self, way.to, item)

    def _shut(self, uid: int) -> None:
        self.open.discard(uid)
        if not self.open and self in self._net.lines:
            self._net.lines.remove(self)
