"""The ledger: which samples are trained, and which are left. A value; every agent holds an equal one.

*Theory of operation.* An epoch is one permutation of the samples, the same at every agent; a position is a place in
it. The ledger holds the positions that are ``left``. All agents deal those by one pure function (:func:`deal`), so
nobody asks anybody for samples, and a step's samples are committed with the round that agreed on its gradient: by the
agents that took part in it. The parts of those who did not stay left, and are dealt again. The epoch ends when nothing
is left, and cannot end before.

:meth:`Ledger.commit` refuses what is not left. So a ledger that has reached epoch e *is* the proof that each sample
was committed exactly once in each of e epochs, and its digest, a chain of hashes over all commits, tells that two
agents committed the same ones in the same order.

Several batches may be committed at once (accumulated gradients), and they may lie on both sides of an epoch's border.
If somebody's parts before the border are then not committed, the epoch after it has begun while some of this one is
left: ``ahead`` holds what is left of such epochs. They go on when this one has ended.

A stream's length is unknown until somebody sees its end: until then what is left ends at ``OPEN``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from itertools import pairwise

import msgspec
from msgspec import Struct

from stretto.errors import Disagreement, UsageError
from stretto.ledger.deal import Deal
from stretto.ledger.ranges import OPEN, Ranges, below, count, cut, without


class Ledger(Struct, frozen=True, forbid_unknown_fields=True):
    """``samples`` an epoch (None: a stream), in the order of ``seed``; ``left`` of ``epoch``, never empty.

    ``steps`` and ``trained`` (samples) are committed so far, over all epochs. JSON and back: ``msgspec.json``.
    """

    samples: int | None
    seed: int
    shuffle: bool
    epoch: int
    left: Ranges
    steps: int
    trained: int
    digest: str
    ahead: tuple[Ranges, ...] = ()

    def __post_init__(self) -> None:
        end = OPEN if self.samples is None else self.samples
        if not self.left:
            raise ValueError("a ledger with nothing left would have begun the next epoch")
        for ranges in (self.left, *self.ahead):
            edges = [0, *(edge for piece in ranges for edge in piece), end]
            if edges[0] > edges[1] or edges[-2] > end or any(a >= b for a, b in pairwise(edges[1:-1])):
                raise ValueError(f"what is left must be ascending ranges that do not touch, from 0 to {end}")

    @classmethod
    def begin(cls, samples: int | None, seed: int = 0, shuffle: bool = True) -> Ledger:
        """Nothing is trained yet.

        Raises:
            UsageError: there are no samples.
        """
        if samples is not None and samples < 1:
            raise UsageError("the dataset is empty: there is nothing to train")
        return cls(samples, seed, shuffle, 0, _fresh(samples), 0, 0, _hash("", samples, seed, shuffle))

    @property
    def open(self) -> bool:
        """Is this the epoch of a stream whose end nobody has seen?"""
        return self.left[-1][1] == OPEN

    def same_data(self, other: Ledger) -> Ledger:
        """``other``, which is of the data that this one is of.

        Raises:
            Disagreement: it is not.
        """
        mine, theirs = ((x.samples, x.seed, x.shuffle) for x in (self, other))
        if mine != theirs:
            raise Disagreement(
                f"the ledger is of (samples, seed, shuffle) = {theirs}, and this shard of {mine}: give every agent, "
                "and a run that is resumed, the same dataset and the same seed"
            )
        return other

    def commit(self, deal: Deal, step: int, ranks: Collection[int] | None = None) -> Ledger:
        """The parts of these agents in ``step`` are trained; all parts without ``ranks``.

        Raises:
            Disagreement: some of it was committed before, or is of another epoch.
        """
        everybody = range(deal.agents)
        who = everybody if ranks is None else sorted(set(ranks))
        if who and (who[0] < 0 or who[-1] >= deal.agents):
            raise UsageError(f"ranks {who} commit a step that was dealt to {deal.agents} agents")
        done = deal.parts(step, who)
        epoch, (left, *ahead) = self._take(deal, done)
        what = (deal.epoch, deal.batch(step), deal.end, deal.batch_size, deal.shares)
        return msgspec.structs.replace(
            self,
            epoch=epoch,
            left=left,
            ahead=tuple(ahead),
            steps=self.steps + 1,
            trained=self.trained + count(done),
            digest=_hash(self.digest, what, None if len(who) == deal.agents else who),
        )

    def past(self, deal: Deal) -> Ledger:
        """Where the ledger will be when everybody has committed every step of ``deal``: to look ahead with."""
        epoch, (left, *ahead) = self._take(deal, below(deal.positions, deal.end))
        return msgspec.structs.replace(self, epoch=epoch, left=left, ahead=tuple(ahead))

    def proof(self) -> str:
        """What this ledger proves, in words."""
        return "; ".join([*self._claims(), f"ledger {self.digest[:12]}"])

    def _claims(self) -> list[str]:
        times = f" in each of {self.epoch} epochs" if self.epoch > 1 else ""
        if self.samples is None:
            whole = self.epoch and (self.left, self.ahead) == (_fresh(None), ())
            return [f"{self.trained:,} samples of a stream, {f'each exactly once{times}' if whole else 'none twice'}"]
        begun = self.trained - self.epoch * self.samples
        claims = [f"{self.samples:,} samples, each exactly once{times}"] if self.epoch else []
        if begun or not self.epoch:
            claims.append(f"{begun:,} samples of {self.samples:,} in epoch {self.epoch} so far, none twice")
        return claims

    def _take(self, deal: Deal, done: Ranges) -> tuple[int, list[Ranges]]:
        """The epoch, and what is left of it and of those ahead, without what is ``done``."""
        lefts = [self.left, *self.ahead]
        place = deal.epoch - self.epoch
        lefts += [_fresh(self.samples)] * (place + 1 - len(lefts))
        try:
            if place < 0:
                raise ValueError(f"epoch {deal.epoch} has ended")
            lefts[place] = below(without(lefts[place], done), deal.end)
        except ValueError as e:
            raise Disagreement(
                f"samples would be trained twice: epoch {self.epoch}, step {self.steps}: {e}; the agents' ledgers "
                "differ: did all call the same things in the same order?"
            ) from e
        ended = next((i for i, left in enumerate(lefts) if left), len(lefts))
        return self.epoch + ended, lefts[ended:] or [_fresh(self.samples)]


def deal(ledger: Ledger, shares: Sequence[int], batch_size: int) -> Deal:
    """How what is left of the epoch is dealt to ``len(shares)`` agents, by rank; equal shares to take equal parts.

    Of a stream whose end nobody has seen: the next step only, with what may follow it.

    Raises:
        UsageError: no agents, or a share or the batch size below 1.
    """
    if not shares or min(shares) < 1 or batch_size < 1:
        raise UsageError(f"shares and batch_size must be at least 1; got {list(shares)} and {batch_size}")
    positions = cut(ledger.left, 0, len(shares) * batch_size) if ledger.open else ledger.left
    return Deal(ledger.epoch, positions, tuple(shares), batch_size)


def _fresh(samples: int | None) -> Ranges:
    return ((0, OPEN if samples is None else samples),)


def _hash(*what: object) -> str:
    return hashlib.blake2s(msgspec.json.encode(what), digest_size=16).hexdigest()
