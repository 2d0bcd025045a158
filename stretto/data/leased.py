"""A shard by demand: what to train next is asked for, of whom samples are leased by.

*Theory of operation.* Whoever answers knows what all train; here is only what this agent has. So the ledger is what was
said at the last fence, the same at all agents, and stands still between two. Where processes load samples, leases are
asked for ahead of what is handed out. Who then cannot be given one at once is told that there is none, and asks again
when it has trained all that it has; told it then, it is at the end. Leases that were read and are not handed out, since
training ends before or others are dealt, are given back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Unpack

import msgspec

from stretto.data.batches import Batches, Options, Turn, standing_of
from stretto.data.course import Terms, steps_ahead
from stretto.data.sources import Source, source_of
from stretto.data.standing import Standing
from stretto.errors import UsageError
from stretto.ledger import Ledger


class Lease(Turn, Protocol):
    """What to train next; ``number`` tells it from all others that this agent has."""

    @property
    def number(self) -> int: ...


class Leased(Batches[Lease]):
    """One agent's batches, as they are leased to it; iterate it once or again, each pass after the first begins at 0.

    Args:
        ask: ``ask(ahead)`` gives what to train next, or None: at the end, or, ``ahead`` of something that is not
            trained yet, where one would have to wait.
        give_back: called with the numbers of leases that will not be trained.
        rank, size: which agent this is, of how many. For ``dataset`` and others see :class:`Batches`.

    Attributes:
        advanced: of it the first number is as of the batch before.
        lease: the number of the batch handed out last; 0 before.

    Raises:
        UsageError: this is no dataset, or a stream.
    """

    in_step = False

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        ask: Callable[[bool], Lease | None],
        *,
        epochs: int = 1,
        rank: int = 0,
        size: int = 1,
        give_back: Callable[[int], object] = lambda number: None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, batch_size, epochs=epochs, **options)
        if self._fresh.samples is None:
            raise UsageError(
                f"{type(dataset).__name__} is a stream, and a server leases samples by their numbers: use a map-style "
                "dataset (with __getitem__ and __len__), or a strategy without a server, such as allreduce() or "
                "local_sgd()"
            )
        self.lease = 0
        self._ask, self._give_back = ask, give_back
        self._terms = Terms(rank, tuple(range(size)), (1,) * size, batch_size, epochs)
        self._has: deque[Lease] = deque()
        self._ended = False
        self._drawn = 0
        self._steps = self._expected()

    def __len__(self) -> int:
        """About how many batches this agent has over all epochs: as many as others, from the last fence on."""
        return max(self._steps, self._drawn)

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            yield batch
            self._see()

    @property
    def drawn(self) -> int:
        """Batches handed out to this agent, over all epochs; those before a state was adopted as an equal part."""
        return self._drawn

    def stand(self, ledger: Ledger) -> None:
        """This is trained: what all agents are told at a fence.

        Raises:
            Disagreement: it is of other data.
        """
        self.ledger = self.ledger.same_data(ledger)
        self.advanced = (self.advanced[0], ledger.trained)
        self._steps = self._drawn + self._expected()

    def renew(self) -> None:
        """What was read and is not handed out is dealt anew: it is dropped, and others are asked for."""
        self._stale = True

    def enter(
        self,
        ledger: Ledger | None,
        rank: int,
        size: int,
        shares: Sequence[int] | None = None,
        members: Sequence[int] | None = None,
    ) -> None:
        """There are ``size`` agents from now on: less is left for each, or more. ``ledger``: from elsewhere."""
        self._terms = replace(self._terms, rank=rank, members=tuple(members or range(size)), shares=(1,) * size)
        self.stand(ledger or self.ledger)

    def state(self) -> Any:
        """How all stand, in plain values; a :class:`Shard` can adopt it."""
        return msgspec.to_builtins(Standing(self.ledger, (), self._terms.batch_size, self._terms.epochs))

    def adopt(self, state: Any, *, join: bool = False, renamed: Mapping[int, int] | None = None) -> None:
        """Stand as others do, also as a :class:`Shard`: what was pending there is leased again.

        ``join``: batch size and epochs are theirs, too.

        Raises:
            Disagreement: it is of other data.
            DataError: it is damaged.
        """
        standing = standing_of(state)
        if join and standing.batch_size:
            self._terms = replace(self._terms, batch_size=standing.batch_size, epochs=standing.epochs)
        self.ledger = self._fresh
        whole = self._expected()
        self.ledger = self.ledger.same_data(standing.ledger)
        self._drawn = whole - self._expected()
        self.stand(standing.ledger)
        self.epoch = self.ledger.epoch
        self._see()
        self.renew()

    def _see(self) -> None:
        """What was trained up to here has been seen."""
        self.advanced = (self.ledger.trained, self.ledger.trained)

    def _expected(self) -> int:
        """How many more batches this agent has, if all have as many."""
        return steps_ahead(self.ledger, self._terms)

    def _begin_anew(self) -> None:
        self._drawn = 0
        self.stand(self._fresh)
        self._see()

    def _reader(self) -> Callable[[], Generator[tuple[Lease, Any], None, None]]:
        source = source_of(self.dataset, self.ledger, workers=self._workers, rank=self._terms.rank)
        return lambda: self._read(source)

    def _read(self, source: Source) -> Generator[tuple[Lease, Any], None, None]:
        self._ended = False
        try:
            while not self._ended:
                yield from source.batches(iter(self._next, None))
        finally:
            for lease in self._has:
                self._give_back(lease.number)
            self._has.clear()

    def _next(self) -> Lease | None:
        lease = self._ask(bool(self._has))
        if lease is not None:
            self._has.append(lease)
        else:
            self._ended = not self._has
        return lease

    def _hand_out(self, turn: Lease) -> None:
        self._has.popleft()
        self._drawn += 1
        self.lease = turn.number
        super()._hand_out(turn)
