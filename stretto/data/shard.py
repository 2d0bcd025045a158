"""The shard: one agent's batches over all epochs, while agents come and go.

*Theory of operation.* What is handed out is *pending* until the agent says who took part in the round that trained it
(:meth:`Shard.committed`); only then the ledger changes. As long as everybody takes part, the course goes on as it was
dealt. When somebody did not, or when the members change (:meth:`Shard.enter`), what is left is dealt anew, from the
next batch on, and what was read ahead is dropped unseen. All agents commit the same batches and enter after the same
round, so they deal alike without a word.

New members never break into what is pending: they are remembered, and enter when some of it has been committed. What is
still pending then is theirs to whom it was dealt, and what is dealt from then on lies beyond it. Only a state from
elsewhere breaks in: a newcomer's own batches are of no account, and are forgotten.

Batches that nobody commits stay pending: they are committed with the next ones. If the pass ends before, they stay
uncommitted, and the proof says what is missing. A pass begins with nothing pending, or with what a checkpoint had.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import msgspec

from stretto.data.batches import Batches, Options, standing_of
from stretto.data.course import Terms, Turn, plan, steps_ahead
from stretto.data.sources import course_source
from stretto.data.standing import Handed, Standing
from stretto.errors import UsageError
from stretto.ledger import Ledger


class Shard(Batches[Turn]):
    """One agent's batches, dealt alike by all; iterate it once or again, each pass after the first begins at epoch 0.

    Args:
        rank, size: which agent this is, of how many. For ``dataset`` and others see :class:`Batches`.
        members: what the agents are called, by rank, in :meth:`committed`; by their ranks without.
        fenced: somebody calls :meth:`committed`. Without, a batch counts as trained by all when it is handed out.
        ledger: what was trained before: the first pass goes on from there, with the batches that were to come.

    Raises:
        UsageError: this is no dataset, or one with fewer samples than agents.
        Disagreement: the ledger is of other data.
    """

    in_step = True

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        epochs: int = 1,
        rank: int = 0,
        size: int = 1,
        fenced: bool = False,
        members: Sequence[int] | None = None,
        ledger: Ledger | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, batch_size, epochs=epochs, **options)
        self._terms = _terms(rank, size, None, members, batch_size, epochs)
        self._next_terms: Terms | None = None
        self._pending: list[Handed] = []
        self._fenced = fenced
        if self.ledger.samples is not None:
            plan(self.ledger.samples, size, batch_size)
        if ledger is not None:
            self._become(Standing(ledger))

    def __len__(self) -> int:
        """Steps over all epochs, those committed before included, if nobody comes or goes from now on."""
        if self.ledger.samples is None:
            raise TypeError(f"{type(self.dataset).__name__} is a stream: it has no length")
        return self.drawn + steps_ahead(self._ahead(), self._terms)

    @property
    def drawn(self) -> int:
        """Batches that were committed and that are pending, over all epochs; the same at all agents."""
        return self.ledger.steps + len(self._pending)

    def committed(self, by: Collection[int] | None = None, *, but: int = 0) -> None:
        """What is pending is trained: by these members, or by all to whom it was dealt.

        Who was dealt nothing of it commits nothing. The last ``but`` batches stay pending.

        Raises:
            Disagreement: some of it is not left in the ledger.
        """
        who = None if by is None else frozenset(by)
        done = max(0, len(self._pending) - but)
        for handed in self._pending[:done]:
            ranks = [rank for rank, member in enumerate(handed.members) if who is None or member in who]
            self.ledger = self.ledger.commit(handed.deal, handed.step, ranks)
            self._stale |= len(ranks) < len(handed.members)
        self.advanced = (self.advanced[0], self.ledger.trained)
        self._drop(done)

    def enter(
        self,
        ledger: Ledger | None,
        rank: int,
        size: int,
        shares: Sequence[int] | None = None,
        members: Sequence[int] | None = None,
    ) -> None:
        """From the next batch on be ``rank`` of ``size`` agents, which get ``shares`` (equal ones without).

        Where something is handed out and not committed, from the first batch after its commit on. ``ledger``: from
        elsewhere; what was handed out here is forgotten.

        Raises:
            Disagreement: the ledger is of other data.
        """
        self._next_terms = _terms(rank, size, shares, members, self._terms.batch_size, self._terms.epochs)
        if ledger is not None:
            self._become(Standing(ledger))
        if not self._pending:
            self._forget()

    def state(self) -> Any:
        """How this shard stands, in plain values; the same at all agents between the same two steps."""
        terms = self._terms
        return msgspec.to_builtins(Standing(self.ledger, tuple(self._pending), terms.batch_size, terms.epochs))

    def adopt(self, state: Any, *, join: bool = False, renamed: Mapping[int, int] | None = None) -> None:
        """Stand as another agent's shard does. Own batches are forgotten.

        ``join``: we become one of those, so what is pending there is pending here, and batch size and epochs are
        theirs, too. Our rank stays as it is: a newcomer's begins with :meth:`enter`. (Who resumes a run may ask for
        others, and is handed out again what was pending; or, where the members of then have been ``renamed``, from old
        to new, it is pending as it was.)

        Raises:
            Disagreement: it is of other data.
            DataError: it is damaged.
        """
        standing = standing_of(state)
        if join and standing.batch_size:
            self._terms = replace(self._terms, batch_size=standing.batch_size, epochs=standing.epochs)
        pending = standing.pending if join else ()
        if renamed is not None:
            pending = tuple(
                msgspec.structs.replace(handed, members=tuple(renamed.get(m, -1) for m in handed.members))
                for handed in standing.pending
            )
        self._become(Standing(standing.ledger, pending))

    def proof(self) -> str:
        pending = f"; {len(self._pending)} batches were handed out and not trained" if self._pending else ""
        return super().proof() + pending

    def _begin_anew(self) -> None:
        self.ledger = self._fresh
        self._forget()

    def _reader(self) -> Callable[[], Generator[tuple[Turn, Any], None, None]]:
        source = course_source(self.dataset, self.ledger, workers=self._workers, rank=self._terms.rank)
        return lambda: source.batches(self._ahead(), self._terms)

    def _ahead(self) -> Ledger:
        """What will be trained when all that is pending is: what is dealt is never dealt again beside that."""
        ledger = self.ledger
        for handed in self._pending:
            ledger = ledger.commit(handed.deal, handed.step)
        return ledger

    def _hand_out(self, turn: Turn) -> None:
        self._pending.append(Handed(turn.deal, turn.step, self._terms.members))
        self.advanced = (self.ledger.trained, self.ledger.trained)
        super()._hand_out(turn)
        if not self._fenced:
            self.committed()

    def _become(self, standing: Standing) -> None:
        self.ledger = self.ledger.same_data(standing.ledger)
        self.epoch = self.ledger.epoch
        self.advanced = (self.ledger.trained, self.ledger.trained)
        self._pending = list(standing.pending)
        self._stale = True

    def _forget(self) -> None:
        """Nothing is pending."""
        self._drop(len(self._pending))

    def _drop(self, done: int) -> None:
        """So many are not pending any more: new members may enter. With the same terms the course goes on as it is."""
        del self._pending[:done]
        if self._next_terms is not None:
            self._stale |= (self._next_terms.rank, self._next_terms.shares) != (self._terms.rank, self._terms.shares)
            self._terms, self._next_terms = self._next_terms, None


def _terms(
    rank: int, size: int, shares: Sequence[int] | None, members: Sequence[int] | None, batch_size: int, epochs: int
) -> Terms:
    if not 0 <= rank < size:
        raise UsageError(f"agent {rank} of {size}: the rank must be from 0 to {size - 1}")
    shares = (1,) * size if shares is None else tuple(shares)
    members = range(size) if members is None else members
    if not len(shares) == len(members) == size:
        raise UsageError(
            f"{len(shares)} shares and {len(members)} members for {size} agents: give one to each, or none"
        )
    return Terms(rank, tuple(members), shares, batch_size, epochs)
