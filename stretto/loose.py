"""Agents that train by themselves: when they agree, and on what, and what some of them mix meanwhile.

Theory of operation. All agents draw the same number of batches, and count them: who comes later takes the others'
count. After the optimizer's step of a batch it is this batch's *turn*: what is under way may land, some may mix, an
agreement may be due. Where that step did not come (a scaler skipped it), the turn comes before the next batch is drawn.
Without a shard steps are counted instead.

There are two kinds of agreement. A *whole* one is of all parameters at once, and agents wait for it: it is a fence, at
which newcomers come in, and it leaves all with what they share. Strategies that agree on everything and wait know no
other. The others agree on fragments in turn, or while they train on, or only on who trained what; those are no fences.
When somebody wants in, whoever hears of it says so in the next agreement of any kind, and the turn after that is a
whole one, for all. So it is for one who finds that the others have gone on without it; and after the last batch, or
when the script asks, so that all end alike. If no round of the strategy is over then, it is on the plain mean. One
agreement is under way at a time: what else is ordered waits for its result, which yet lands when it is due.

A batch is trained, for all, when each fragment was agreed on after it.

What waits is a coroutine: a trainer's process runs it to its end on the spot (:mod:`stretto.wire`), a simulated agent
in its own time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stretto.core import Served, Strategy
from stretto.drifts import Drifts, diverged
from stretto.errors import NonFinite
from stretto.landings import Replace, Restart
from stretto.notices import Given, Wire, noticed
from stretto.session import AGREED, SETTLE, Closing


@dataclass(slots=True)
class Flight:
    """An agreement under way, begun after ``since`` steps: of these parts, all trained up to step ``upto``."""

    since: int
    upto: int
    parts: Sequence[int]
    coming: Awaitable[Closing] | None
    closing: Closing | None = None


@dataclass(slots=True)
class Mixed:
    """One bucket's mixing under way: where it lies, and what it was."""

    part: int
    x: Tensor
    was: Tensor
    coming: Awaitable[bool]


class Loose:
    """One group of drifts, exchanged as ``strategy`` says. Every coroutine runs with gradients off.

    Args:
        notice: two tensors of :data:`~stretto.notices.NOTICE` elements: what is given, and where its mean comes.
        late: we are new: our first turn is a whole agreement, which gives us what the others have.
    """

    def __init__(
        self, strategy: Strategy, drifts: Drifts, notice: tuple[Tensor, Tensor], wire: Wire, *, late: bool
    ) -> None:
        self.drifts = drifts
        self._strategy, self._notice, self._wire = strategy, notice, wire
        self._whole_next, self._alike, self._leap = late, True, False
        self._steps = self._done = 0
        self._agreed = [0] * len(drifts.fragments)
        self._flight: Flight | None = None
        self._mixed: list[Mixed] = []

    async def draw(self, end: bool) -> None:
        """A batch is about to be handed out, or, at the ``end``, there is none: of a stream nobody knew that."""
        await self.turn()
        if end:
            await self.synchronise()

    async def stepped(self) -> None:
        """The optimizer has made a step."""
        self._steps += self._wire.drawn is None
        await self.turn()

    async def synchronise(self) -> None:
        """Agree on all that was trained since the last time, and all be alike; all call it after the same batch.

        It is no fence: scripts go on elsewhere than after a step, where newcomers would.
        """
        if not self._alike:
            self._done = self._number()
            await self._agree_on_all(fence=False)

    async def turn(self) -> None:
        """So many batches are trained: what is due, once?"""
        step, strategy = self._number(), self._strategy
        if step <= self._done:
            return
        self._done, self._alike = step, False
        if self._lands(step):
            await self._land()
        due, last = strategy.schedule.due(step - 1), self._wire.ends
        if self._whole_next or last or (due and self._waits):
            await self._agree_on_all(fence=True)
            return
        if strategy.beside is not None and strategy.beside.schedule.due(step - 1):
            await self._mix(step, behind=strategy.beside.behind)
        if due:
            await self._begin(step)

    async def collect(self) -> None:
        """Wait for what is under way; it lands when it is due."""
        flight = self._flight
        if flight is not None and flight.coming is not None and flight.closing is None:
            flight.closing = closing = await flight.coming
            await self._heard(closing, max(0, self._number() - flight.upto))

    # Agreements

    def _lands(self, step: int) -> bool:
        """Is it time for what is under way? (Where agents restart from it, what they trained must leave first.)"""
        landing, flight = self._strategy.landing, self._flight
        return not isinstance(landing, Restart) and flight is not None and step - flight.since >= max(1, landing.behind)

    @property
    def _waits(self) -> bool:
        """Is every agreement a whole one?"""
        return self._strategy.schedule.fragments == 1 and self._strategy.landing.behind == 0

    async def _agree_on_all(self, *, fence: bool) -> None:
        await self._settle_mixed()
        parts = range(len(self.drifts.buckets))
        if isinstance(self._strategy.landing, Restart):
            await self._restart(self._number(), 0.0)
        else:
            await self._land()
            for part in parts:
                self.drifts.leave(part)
        self._leap = not fence or self._whole_next or self._wire.ends
        closing = await self._give(parts, fence=fence)  # who is given what all share meanwhile is given this, too
        await self._heard(closing, 0)
        if closing.alone:
            return
        self._whole_next = False
        usual = self._waits and self._strategy.schedule.due(self._number() - 1)
        for part in parts:
            self.drifts.land(part, closing, self._number(), leap=self._leap, plain=not usual)
        if self._strategy.beside is not None:
            await self._wire.mix(0, self.drifts.alone(0), AGREED)
        self.drifts.settle()
        self._done, self._alike = self._number(), self._leap or isinstance(self._strategy.landing, Replace)
        self._agreed = [self._done] * len(self._agreed)

    async def _begin(self, step: int) -> None:
        """An agreement that is no fence."""
        schedule, landing = self._strategy.schedule, self._strategy.landing
        if isinstance(landing, Restart):
            await self._restart(step, landing.guess / self._wire.size)
            every = range(len(self.drifts.buckets))
            self._agreed = [step]
            self._flight = Flight(step, step, every, self._give(every, fence=False))
            return
        await self._land()
        turn = schedule.turn(step - 1)
        parts = self.drifts.fragments[turn] if schedule.fragments else []
        for part in parts:
            self.drifts.leave(part)
        upto = step
        if parts:
            self._agreed[turn] = step
            upto = min(self._agreed)
        self._flight = Flight(step, upto, parts, self._give(parts, fence=False))
        if parts and landing.behind == 0:
            await self._land()

    async def _restart(self, step: int, guess: float) -> None:
        """What was under way lands, and what was trained meanwhile is to leave."""
        await self.collect()
        flight, self._flight = self._flight, None
        landed = flight.closing if flight is not None and flight.closing is not None else None
        for part in range(len(self.drifts.buckets)):
            self.drifts.restart(part, None if landed is None or landed.alone else landed, step, guess)
        self.drifts.settle()

    async def _land(self) -> None:
        """What is under way lands."""
        await self.collect()
        flight, self._flight = self._flight, None
        if flight is None or flight.closing is None or flight.closing.alone:
            return
        for part in flight.parts:
            self.drifts.land(part, flight.closing, self._number())
        if flight.parts:
            self.drifts.settle()

    def _give(self, parts: Sequence[int], *, fence: bool) -> Awaitable[Closing]:
        flat, mean = self._notice
        noticed(flat, self._wire.wishes(), lost=not self.drifts.check(parts))
        buckets = self.drifts.buckets
        given = [Given(len(buckets), flat, mean)] + [Given(p, buckets[p].flat, buckets[p].mean) for p in parts]
        return self._wire.agree(given, fence=fence)

    async def _heard(self, closing: Closing, but: int) -> None:
        """How an agreement ended, and what is wished.

        Raises:
            Diverged: somebody's weights are not finite; at all alike, before anything of it lands.
        """
        _, save, door, lost = self._notice[1].tolist()
        if closing.alone:
            self._whole_next = True
            return
        if lost > 0:
            raise diverged(self._number())
        changed = closing.epoch is not None and self._strategy.beside is not None  # what was mixed is uneven now
        self._whole_next |= changed or (door > 0 and not self._waits)
        self._wire.closed(closing, save=save > 0, but=but)

    # What some mix

    async def _mix(self, step: int, *, behind: bool) -> None:
        await self._take_mixed()
        for part in range(len(self.drifts.buckets)):
            x = self.drifts.alone(part)
            if x.numel():  # (a bucket may be there for what rides along)
                self._mixed.append(Mixed(part, x, x.clone() if behind else x, self._wire.mix(part, x, step)))
        if not behind:
            await self._take_mixed()

    async def _take_mixed(self) -> None:
        """What was mixed becomes ours; where we trained on meanwhile, by what it changed."""
        under_way, self._mixed = self._mixed, []
        for mixed in under_way:
            try:
                came = await mixed.coming
            except NonFinite:
                raise diverged(self._number()) from None
            if came:
                if mixed.was is mixed.x:
                    self.drifts.become(mixed.part, mixed.x)
                else:
                    self.drifts.shift(mixed.part, mixed.x - mixed.was)

    async def _settle_mixed(self) -> None:
        """Take all that is ours of what was mixed, and mix no more for now."""
        await self._take_mixed()
        beside = self._strategy.beside
        if beside is not None and isinstance(beside.mixing, Served):
            await self._mix(SETTLE, behind=False)

    # What others are given, and what is our own

    def shared(self) -> dict[int, Tensor]:
        """What all have alike in place of a parameter or buffer, by its ``id``."""
        return self.drifts.shared()

    def state(self) -> list[Any]:
        """How many steps were made, does the whole agreement under way leap, and what the outer optimizer remembers."""
        return [self._steps, self._leap, *self.drifts.state()]

    @torch.no_grad()
    def adopt(self, outers: list[Any]) -> None:
        """We have been given what all share."""
        self._steps, self._leap, *states = outers
        self.drifts.adopt(states)
        self._done, self._alike = self._number(), True
        self._agreed = [self._done] * len(self._agreed)
        self._flight = None
        self._mixed.clear()

    async def own(self) -> dict[str, Any] | None:
        """What is ours alone, in plain values; None where what all share is all there is."""
        await self.collect()
        await self._settle_mixed()
        flight = self._flight
        if self._alike and flight is None and self._strategy.beside is None:
            return None
        beside = self._strategy.beside
        served = beside is not None and isinstance(beside.mixing, Served)  # others' cells are saved at other moments
        return {
            "drifts": self.drifts.own(),
            "agreed": self._agreed,
            "whole_next": self._whole_next or served,
            "flight": self._as_plain(flight) if flight is not None else None,
        }

    @torch.no_grad()
    def become_own(self, own: dict[str, Any]) -> None:
        """Go on from there."""
        self.drifts.become_own(own["drifts"])
        self._alike = False
        self._done, self._agreed, self._whole_next = self._number(), list(own["agreed"]), own["whole_next"]
        if own["flight"] is not None:
            since, upto, parts, means, whole, alone = own["flight"]
            for part, mean in zip(parts, means, strict=True):
                self.drifts.buckets[part].mean.copy_(mean)
            closing = Closing(0, (), whole, alone=alone)
            self._flight = Flight(since, upto, parts, None, closing)

    def _as_plain(self, flight: Flight) -> list[Any]:
        assert flight.closing is not None
        means = [self.drifts.buckets[part].mean for part in flight.parts]
        closing = flight.closing
        return [flight.since, flight.upto, list(flight.parts), means, closing.whole, closing.alone]

    def _number(self) -> int:
        drawn = self._wire.drawn
        return self._steps if drawn is None else drawn
