"""A stream, dealt by position: every agent reads all of it and keeps its parts.

*Theory of operation.* A stream's length is unknown, so it is dealt one step at a time: the next n x batch_size
positions. Every agent reads to the batch's last position and one sample further, whatever its part: so all agents see
the stream's end with its last batch, and know how large that is, which its weights need. Its parts are cut off
where the stream ends; some are then empty. The ledger learns of the end when that batch is committed.

A stream cannot go back: where positions were not committed by those who had them, it is begun anew, and skipped up to
there. It must give the same samples in the same order each time.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Any, Final

from torch.utils.data import default_collate

from stretto.data.course import Terms, Turn
from stretto.errors import DataError, UsageError
from stretto.ledger import Deal, Ledger, Ranges, deal

_END: Final = object()


class StreamSource:
    """Batches of an iterable dataset."""

    def __init__(self, dataset: Iterable[Any]) -> None:
        self._reader = Reader(dataset)

    def batches(self, ledger: Ledger, terms: Terms) -> Generator[tuple[Turn, Any], None, None]:
        while ledger.epoch < terms.epochs:
            dealt = deal(ledger, terms.shares, terms.batch_size)
            for step in range(dealt.steps):
                samples = self._read(dealt, step, terms.rank)
                self._check(ledger, dealt.batch(step)[-1][1], samples)
                if ledger.open and self._reader.ended:
                    dealt = dealt.until(self._reader.position)
                yield Turn(dealt, step, terms.rank), default_collate(samples)
            ledger = ledger.past(dealt)

    def _read(self, dealt: Deal, step: int, rank: int) -> list[Any]:
        """This agent's samples of a step, or some that weigh nothing; none if the stream has none."""
        part = dealt.part(step, rank)
        mine: list[Any] = []
        stand_in: list[Any] = []
        for position, sample in self._reader.read(dealt.epoch, dealt.batch(step)):
            if any(start <= position < stop for start, stop in part):
                mine.append(sample)
            elif len(stand_in) < dealt.fewest:
                stand_in.append(sample)
        return mine or stand_in

    def _check(self, ledger: Ledger, wanted: int, samples: list[Any]) -> None:
        """A stream ends before ``wanted`` only where nobody has been yet."""
        name, found, epoch = self._reader.name, self._reader.position, ledger.epoch
        if not found and not epoch:
            raise UsageError(f"{name} is empty: there is nothing to train")
        if not samples or found < min(wanted, ledger.left[-1][0] if ledger.open else wanted):
            raise DataError(
                f"{name} ended after {found} samples when it was read again in epoch {epoch}, and had more before: it "
                "must begin anew, with the same samples in the same order, each time it is iterated"
            )


class Reader:
    """The samples of a stream by epoch and position; it knows of the end with the last one."""

    def __init__(self, dataset: Iterable[Any]) -> None:
        self.name = type(dataset).__name__
        self.position = 0
        self._dataset = dataset
        self._epoch = -1
        self._samples: Iterator[Any] = iter(())
        self._next: Any = _END

    @property
    def ended(self) -> bool:
        return self._next is _END

    def read(self, epoch: int, positions: Ranges) -> Iterator[tuple[int, Any]]:
        """The samples at ``positions``, as far as there are any."""
        for start, stop in positions:
            if epoch != self._epoch or start < self.position:
                self._rewind(epoch)
            while self.position < stop and not self.ended:
                sample, self._next = self._next, next(self._samples, _END)
                self.position += 1
                if self.position > start:
                    yield self.position - 1, sample

    def _rewind(self, epoch: int) -> None:
        self._samples = iter(self._dataset)
        self._epoch, self.position, self._next = epoch, 0, next(self._samples, _END)
