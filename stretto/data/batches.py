"""What every way to come by batches has in common: how a pass over the data goes, and what is told about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypedDict, TypeVar

import msgspec

from stretto.data.sources import Portion, length_of
from stretto.data.standing import Standing
from stretto.errors import DataError, UsageError
from stretto.ledger import Ledger


class Turn(Portion, Protocol):
    """One agent's part of one step; is it the ``last`` of the training, as far as one knows?"""

    @property
    def share(self) -> float: ...
    @property
    def last(self) -> bool: ...


T = TypeVar("T", bound=Turn)


class Position(NamedTuple):
    """How far the training has come: the epoch under way, steps and samples committed over all epochs."""

    epoch: int
    steps: int
    samples: int


class Options(TypedDict, total=False):
    """What :class:`Batches` takes beside a dataset and sizes."""

    seed: int
    workers: int
    shuffle: bool
    on_batch: Callable[[float], None] | None
    on_begin: Callable[[], object]
    on_draw: Callable[[bool], object]


class Batches(ABC, Generic[T]):
    """One agent's batches over all epochs; iterate it once or again, each pass after the first begins at epoch 0.

    Args:
        dataset: a map-style dataset, a tensor, or a tuple of tensors that share their first dimension; tensors (and a
            ``TensorDataset``) are indexed a batch at a time. Or a stream (an ``IterableDataset``), which comes in its
            own order, the same each time it is iterated.
        batch_size: samples of this agent in a step.
        workers: processes that load samples; tensors need none.
        shuffle: a new permutation each epoch, or the order of the dataset.
        on_batch: called with the agent's share (see :meth:`stretto.ledger.Deal.share`) before each batch is handed out.
        on_begin: called when a pass begins, before anything is handed out; it may :meth:`adopt`.
        on_draw: called before a batch is handed out, and with True when none is left: what is pending may be committed
            now, or what others stand at be adopted.

    Attributes:
        ledger: what is trained, as of the last commit.
        epoch: the epoch of the batch handed out last.
        ends: is there none after it, unless some are dealt again? (Of a stream nobody knows.)
        advanced: samples committed over all epochs, when that batch was handed out and now; the same at all agents.

    Raises:
        UsageError: this is no dataset.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        epochs: int = 1,
        seed: int = 0,
        workers: int = 0,
        shuffle: bool = True,
        on_batch: Callable[[float], None] | None = None,
        on_begin: Callable[[], object] = lambda: None,
        on_draw: Callable[[bool], object] = lambda end: None,
    ) -> None:
        if epochs < 1 or workers < 0 or batch_size < 1:
            raise UsageError(
                f"epochs and batch_size must be at least 1 and workers at least 0; got {epochs}, {batch_size} and "
                f"{workers}"
            )
        self.dataset = dataset
        self._fresh = Ledger.begin(length_of(dataset, workers), seed, shuffle)
        self.ledger = self._fresh
        self.epoch = 0
        self.ends = False
        self.advanced = (0, 0)
        self._begun = self._stale = False
        self._workers, self._on_batch, self._on_begin, self._on_draw = workers, on_batch, on_begin, on_draw

    def __iter__(self) -> Iterator[Any]:
        if self._begun:
            self._begin_anew()
        self._begun = True
        self._on_begin()
        read = self._reader()
        while True:
            self._stale = False
            with closing(read()) as turns:
                for turn, batch in turns:
                    if self._dealt_anew(end=False):
                        break
                    self._hand_out(turn)
                    yield batch
                    if self._stale:
                        break
                else:
                    if not self._dealt_anew(end=True):
                        return

    in_step: ClassVar[bool]
    """Have all agents been handed out as many batches?"""

    @property
    @abstractmethod
    def drawn(self) -> int:
        """Batches so far, over all epochs."""

    @abstractmethod
    def enter(
        self,
        ledger: Ledger | None,
        rank: int,
        size: int,
        shares: Sequence[int] | None = None,
        members: Sequence[int] | None = None,
    ) -> None:
        """From the next batch on be ``rank`` of ``size`` agents. ``ledger``: from elsewhere."""

    @abstractmethod
    def state(self) -> Any:
        """How this shard stands, in plain values."""

    @abstractmethod
    def adopt(self, state: Any, *, join: bool = False, renamed: Mapping[int, int] | None = None) -> None:
        """Stand as another agent's shard does."""

    def position(self) -> Position:
        return Position(self.ledger.epoch, self.ledger.steps, self.ledger.trained)

    def proof(self) -> str:
        """What the ledger proves, and what it does not: ``60,000 samples, each exactly once; ledger 5f3a0c97d2e1``."""
        return self.ledger.proof()

    @abstractmethod
    def _begin_anew(self) -> None:
        """Another pass begins."""

    @abstractmethod
    def _reader(self) -> Callable[[], Generator[tuple[T, Any], None, None]]:
        """What reads this pass: call it to read from here on."""

    def _hand_out(self, turn: T) -> None:
        self.epoch, self.ends = turn.epoch, turn.last
        if self._on_batch:
            self._on_batch(turn.share)

    def _dealt_anew(self, *, end: bool) -> bool:
        """A batch is about to be drawn: must it be dealt anew first?"""
        self._on_draw(end)
        return self._stale


def standing_of(state: Any) -> Standing:
    """A shard's state.

    Raises:
        DataError: it is damaged.
    """
    try:
        return msgspec.convert(state, Standing)
    except msgspec.ValidationError as e:
        raise DataError(f"the state of a shard is damaged: {e}; take it from another agent or checkpoint") from e
