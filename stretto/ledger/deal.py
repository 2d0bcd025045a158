"""How the positions that are left are dealt to the agents, step by step.

*Theory of operation.* R positions are cut into S steps, and each step's batch into one part an agent. With n agents
and G = n x batch_size, S = min(⌈R/G⌉, ⌊R/nm⌋), but at least 1, where m is 2 (1 if batch_size is): the second bound
leaves no agent with fewer than m samples as long as there are m for each. Batches differ by at most one sample, and the
smaller ones come first. So what is left after any number of steps is dealt exactly as it was dealt before: a deal needs
no memory, and whoever begins in the middle (resumed, or new) trains the same batches. With a batch_size of at least 4
they depend on G alone, so that n agents train what one process with the whole batch would.

Inside a batch of k, the agent whose shares are the a-th to b-th of c gets positions ⌊k·a/c⌋ up to ⌊k·b/c⌋: parts are
proportional to the shares within one sample, and with equal ones differ by at most one. Where parts differ, an agent's
gradient is weighted by its part, and the mean over agents is the exact mean over samples.

A batch of one is what batch normalisation refuses, and nobody can tell what a death leaves over. So where a part would
be a single sample, and batch_size is not 1, that batch is dealt in pairs: parts are proportional within two samples. A
single sample is handed out only where nothing else is left: of one in all, or the last of a stream.

A part may be empty: where fewer than m samples an agent are left, or an agent's share is small. Its weight is then 0,
and the agent takes part in the step all the same, or it would starve the others of a round.

With equal shares a part exceeds ``batch_size`` only if that is at most 3 and the agents do not divide what is left.
With unequal shares the faster agents' parts exceed it by design.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import msgspec
from msgspec import Struct

from stretto.ledger.ranges import Ranges, below, count, cut


class Deal(Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """``positions`` of one epoch, dealt to ``len(shares)`` agents. Pure: equal deals at all of them.

    ``end``: the stream has no sample there or beyond, as was found when this deal was read; parts end there.
    """

    epoch: int
    positions: Ranges
    shares: tuple[int, ...]
    batch_size: int
    end: int | None = None

    @property
    def agents(self) -> int:
        return len(self.shares)

    @cached_property
    def steps(self) -> int:
        wanted = -(-self._total // (self.agents * self.batch_size))
        return max(1, min(wanted, self._total // (self.agents * self.fewest)))

    @property
    def fewest(self) -> int:
        """Samples in the smallest part that is not empty, as far as there are as many."""
        return min(2, self.batch_size)

    def batch(self, step: int) -> Ranges:
        """What all agents train together in ``step``."""
        return below(self._batch(step), self.end)

    def part(self, step: int, rank: int) -> Ranges:
        """What one agent trains in ``step``; may be empty."""
        whole = self._batch(step)
        edges = self._edges(count(whole))
        return below(cut(whole, edges[rank], edges[rank + 1]), self.end)

    def stand_in(self, step: int) -> Ranges:
        """What an agent reads whose part is empty."""
        return cut(self.batch(step), 0, self.fewest)

    def read(self, step: int, rank: int) -> Ranges:
        """What an agent reads in ``step``: its part, or some that weigh nothing."""
        return self.part(step, rank) or self.stand_in(step)

    def parts(self, step: int, ranks: Sequence[int]) -> Ranges:
        """What these agents (ranks in ascending order) train in ``step``, together."""
        if len(ranks) == self.agents:
            return self.batch(step)
        return tuple(piece for rank in ranks for piece in self.part(step, rank))

    def share(self, step: int, rank: int) -> float:
        """What this agent's gradient weighs: the mean over agents of share x gradient is the mean over samples."""
        return count(self.part(step, rank)) * self.agents / count(self.batch(step))

    def until(self, end: int) -> Deal:
        """This deal of a stream that turned out to end before position ``end``."""
        return msgspec.structs.replace(self, end=end)

    @cached_property
    def _total(self) -> int:
        return count(self.positions)

    @cached_property
    def _shares(self) -> tuple[int, ...]:
        return (0, *accumulate(self.shares))

    def _edges(self, size: int) -> list[int]:
        """Where parts of a batch begin and end."""
        all_shares = self._shares[-1]
        edges = [size * upto // all_shares for upto in self._shares]
        if self.fewest == 2 and any(b - a == 1 for a, b in pairwise(edges)):
            edges = [size // 2 * upto // all_shares * 2 for upto in self._shares[:-1]] + [size]
        return edges

    def _batch(self, step: int) -> Ranges:
        size, larger = divmod(self._total, self.steps)
        smaller = self.steps - larger
        first = step * size + max(0, step - smaller)
        return cut(self.positions, first, first + size + (step >= smaller))
