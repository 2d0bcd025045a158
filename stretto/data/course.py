"""The course of the training ahead: step after step, as long as everybody commits what is dealt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from stretto.errors import UsageError
from stretto.ledger import Deal, Ledger, Ranges, deal


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms an agent takes part: its rank among ``members``, everybody's shares, samples an agent and step."""

    rank: int
    members: tuple[int, ...]
    shares: tuple[int, ...]
    batch_size: int
    epochs: int


class Turn(NamedTuple):
    """One agent's part of one step; is it the ``last`` of the course, as far as one knows?"""

    deal: Deal
    step: int
    rank: int
    last: bool = False

    @property
    def epoch(self) -> int:
        return self.deal.epoch

    @property
    def read(self) -> Ranges:
        """The positions to hand out: its part, or some that weigh nothing."""
        return self.deal.read(self.step, self.rank)

    @property
    def share(self) -> float:
        return self.deal.share(self.step, self.rank)


def course(ledger: Ledger, terms: Terms) -> Iterator[Turn]:
    """The turns from here to the end of the last epoch."""
    while ledger.epoch < terms.epochs:
        dealt = deal(ledger, terms.shares, terms.batch_size)
        ledger = ledger.past(dealt)
        for step in range(dealt.steps):
            yield Turn(dealt, step, terms.rank, step == dealt.steps - 1 and ledger.epoch >= terms.epochs)


def steps_ahead(ledger: Ledger, terms: Terms) -> int:
    """How many turns :func:`course` has."""
    steps = 0
    for _ in range(1 + len(ledger.ahead)):
        if ledger.epoch < terms.epochs:
            dealt = deal(ledger, terms.shares, terms.batch_size)
            steps, ledger = steps + dealt.steps, ledger.past(dealt)
    whole = deal(ledger, terms.shares, terms.batch_size)
    return steps + max(0, terms.epochs - ledger.epoch) * whole.steps


def plan(samples: int, agents: int, batch_size: int) -> Deal:
    """How a whole epoch is dealt to equal agents, ``batch_size`` samples each in a step.

    Raises:
        UsageError: fewer samples than agents, or a size below 1.
    """
    if agents < 1 or batch_size < 1:
        raise UsageError(f"agents and batch_size must be at least 1; got {agents} and {batch_size}")
    ledger = Ledger.begin(samples)
    if samples < agents:
        raise UsageError(
            f"more agents than samples: {agents} agents, {samples} samples; start at most {samples} agents, "
            "or bring more data"
        )
    return deal(ledger, (1,) * agents, batch_size)
