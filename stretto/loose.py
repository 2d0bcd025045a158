"""When agents that train by themselves exchange: after the batches at which the schedule is due, and at the end.

Theory of operation. All agents draw the same number of batches, and count them: who comes later takes the others'
count. An exchange is due after the optimizer's step of such a batch. Where that step did not come (a scaler skipped
it), the exchange comes before the next batch is drawn. Without a shard steps are counted instead. What was trained
after the last exchange is exchanged when no batch is left, or when the script asks.

A newcomer exchanges after its first step, as the others after theirs: schedulers move on after it, at all alike. What
it trained before that is of no account.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from stretto.core import Schedule
from stretto.drifts import Drifts


class Loose:
    """One group of drifts, exchanged by ``schedule``.

    Args:
        drawn: batches drawn so far, by all alike; None where nothing is dealt.
        late: we are new: our first step ends with an exchange, which gives us what the others have.
    """

    def __init__(
        self, schedule: Schedule, drifts: Drifts, local: list[Any], drawn: Callable[[], int | None], *, late: bool
    ) -> None:
        self.drifts, self.local = drifts, local
        self._schedule, self._drawn, self._late = schedule, drawn, late
        self._steps = self._done = 0
        optimizers = [o for o in local if isinstance(o, Optimizer)]
        if optimizers:
            optimizers[-1].register_step_post_hook(lambda *_: self._stepped())

    def draw(self, end: bool) -> None:
        """A batch is about to be handed out, or, at the ``end``, there is none."""
        if self._due() or end:
            self.synchronise()

    def synchronise(self) -> None:
        """Exchange what was trained since the last time; all agents call it after the same batch."""
        if self._late or self._number() > self._done:
            self._late = False
            self.drifts.exchange(self._number())
            self._done = self._number()

    def adopt(self, outers: list[Any]) -> None:
        """We have been given what all share."""
        self.drifts.adopt(outers)
        self._done = self._number()

    def _stepped(self) -> None:
        self._steps += self._drawn() is None
        if self._due():
            self.synchronise()

    def _due(self) -> bool:
        number = self._number()
        return number > self._done and (self._late or self._schedule.due(number - 1))

    def _number(self) -> int:
        drawn = self._drawn()
        return self._steps if drawn is None else drawn
