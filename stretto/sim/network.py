"""A network as numbers: rates, delays, jitter and loss, for all pairs or for one.

The model. A message leaves its sender when the ones before it have left, at the sender's ``up`` rate. It then takes
its turn at the receiver's ``down`` rate, in the order in which messages began to leave (by whichever wire),
so that a thousand senders share one receiver; the network between has room for all that waits. A ``delay`` later it has
arrived. Between one pair nothing overtakes.

Links are reliable, so loss costs time: a message of k segments needs one more round trip for every round in which any
of its segments is lost, and the lost ones are sent again. That a sender slows down on loss (congestion control) is not
modelled; lower ``rate`` for that.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from stretto.core import Network
from stretto.errors import UsageError

SEGMENT: Final = 1448
"""Payload bytes of one TCP segment on Ethernet."""


@dataclass(frozen=True, slots=True)
class Wire:
    """One direction between two agents. ``rate`` in bytes/s; delay and jitter in s; ``loss`` per segment, 0 … 1.

    Jitter is uniform between 0 and ``jitter``, added to the delay.
    """

    delay: float = 50e-6
    rate: float = float("inf")
    jitter: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        if self.delay < 0 or self.jitter < 0 or self.rate <= 0 or not 0 <= self.loss < 1:
            raise UsageError(f"{self}: delay and jitter must be at least 0, rate above 0, loss from 0 to below 1")

    def extra(self, nbytes: int, draw: random.Random) -> float:
        """Seconds beyond the delay for a message of ``nbytes``."""
        late = self.jitter * draw.random() if self.jitter else 0.0
        segments = -(-nbytes // SEGMENT) or 1
        while self.loss and segments and draw.random() >= (1 - self.loss) ** segments:
            late += 2 * self.delay
            segments = max(1, round(segments * self.loss))
        return late


@dataclass(frozen=True)
class SimNetwork:
    """Every agent sends and receives at ``rate`` bytes/s unless ``up`` or ``down`` names another rate for it.

    ``wires[src, dst]`` replaces delay, jitter and loss of one direction of one pair, and may lower its rate.
    """

    delay: float = 50e-6
    rate: float = 1e9
    jitter: float = 0.0
    loss: float = 0.0
    up: Mapping[int, float] = field(default_factory=dict)
    down: Mapping[int, float] = field(default_factory=dict)
    wires: Mapping[tuple[int, int], Wire] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.rate, *self.up.values(), *self.down.values(), 1.0) <= 0:
            raise UsageError("a simulated rate must be above 0 bytes/s")

    def wire(self, src: int, dst: int) -> Wire:
        return self.wires.get((src, dst)) or Wire(self.delay, jitter=self.jitter, loss=self.loss)

    def agreed(self) -> Network:
        """What agents on this network would measure and agree on: the slowest pair."""
        delays = [self.delay, *(w.delay for w in self.wires.values())]
        rates = [self.rate, *self.up.values(), *self.down.values(), *(w.rate for w in self.wires.values())]
        return Network(max(delays), min(rates))
