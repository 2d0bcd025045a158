"""Where samples come from: tensors, datasets with numbered samples, and streams.

A source lives for one pass. ``batches`` may be given up at any batch and called again: what was read ahead is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from stretto.core import mixed
from stretto.data.course import Terms, Turn, course
from stretto.data.order import Order
from stretto.data.stream import StreamSource
from stretto.errors import UsageError
from stretto.ledger import Ledger, Ranges


class Portion(Protocol):
    """Positions of one epoch, to be handed out together."""

    @property
    def epoch(self) -> int: ...
    @property
    def read(self) -> Ranges: ...


P = TypeVar("P", bound=Portion)


class Source(Protocol):
    """Samples by their numbers."""

    def batches(self, portions: Iterator[P]) -> Generator[tuple[P, Any], None, None]:
        """Each portion with its batch."""
        ...


class CourseSource(Protocol):
    """Samples in the order of a course."""

    def batches(self, ledger: Ledger, terms: Terms) -> Generator[tuple[Turn, Any], None, None]:
        """The turns from ``ledger`` on, each with its batch."""
        ...


class OnCourse:
    """Numbered samples, in the order of a course."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def batches(self, ledger: Ledger, terms: Terms) -> Generator[tuple[Turn, Any], None, None]:
        return self._source.batches(course(ledger, terms))


class TensorSource:
    """Tensors that share their first dimension: a batch is indexed at once."""

    def __init__(self, tensors: tuple[Tensor, ...], order: Order, *, bare: bool) -> None:
        self._tensors, self._order, self._bare = tensors, order, bare

    def batches(self, portions: Iterator[P]) -> Generator[tuple[P, Any], None, None]:
        for portion in portions:
            numbers = self._order.numbers(portion.epoch, portion.read)
            batch = tuple(t.index_select(0, numbers.to(t.device)) for t in self._tensors)
            yield portion, batch[0] if self._bare else batch


class NumberedSource:
    """A map-style dataset behind one loader, whose workers live as long as the pass and read ahead across epochs.

    The loader begins anew with every call of ``batches``: it then drops what its workers have read and keeps them. Its
    own generator keeps it from drawing on the global one, and gives each agent's workers other seeds.
    """

    def __init__(self, dataset: Dataset[Any], order: Order, *, workers: int, seed: int) -> None:
        self._ahead = _Ahead(order)
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._ahead,
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(seed),
        )

    def batches(self, portions: Iterator[P]) -> Generator[tuple[P, Any], None, None]:
        ordered: deque[P] = deque()
        self._ahead.take(portions, ordered)
        for batch in self._loader:
            yield ordered.popleft(), batch


class _Ahead:
    """What a DataLoader takes for a batch sampler: portions as lists of numbers. What it asked for is ``ordered``."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._asked: Iterator[list[int]] = iter(())

    def take(self, portions: Iterator[P], ordered: deque[P]) -> None:
        """Forget what was asked for; these are next."""
        self._asked = self._numbers(portions, ordered)

    def __iter__(self) -> Iterator[list[int]]:
        return self._asked

    def _numbers(self, portions: Iterator[P], ordered: deque[P]) -> Iterator[list[int]]:
        for portion in portions:
            ordered.append(portion)
            yield self._order.numbers(portion.epoch, portion.read).tolist()


def course_source(dataset: Any, ledger: Ledger, *, workers: int, rank: int) -> CourseSource:
    """The source that reads ``dataset`` as all deal it alike."""
    if ledger.samples is None:
        return StreamSource(dataset)
    return OnCourse(source_of(dataset, ledger, workers=workers, rank=rank))


def source_of(dataset: Any, ledger: Ledger, *, workers: int, rank: int) -> Source:
    """The source that reads ``dataset``, which is no stream, in the orders of ``ledger``."""
    order, tensors = Order(ledger), _tensors(dataset)
    if tensors is not None:
        return TensorSource(tensors, order, bare=isinstance(dataset, Tensor))
    return NumberedSource(dataset, order, workers=workers, seed=mixed(ledger.seed, -1 - rank))


def length_of(dataset: Any, workers: int) -> int | None:
    """How many samples; None for a stream.

    Raises:
        UsageError: it is no dataset, or cannot be read as asked.
    """
    if isinstance(dataset, IterableDataset):
        if workers:
            raise UsageError(
                f"{type(dataset).__name__} is a stream, and each of {workers} workers would read all of it: use "
                "workers=0, or a map-style dataset (with __getitem__ and __len__)"
            )
        return None
    tensors = _tensors(dataset)
    if tensors is not None:
        lengths = [len(t) if t.dim() else 0 for t in tensors]
        if len(set(lengths)) > 1:
            raise UsageError(f"the tensors of a dataset must agree in their first dimension; got {lengths}")
        return lengths[0]
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UsageError(f"{type(dataset).__name__} is not a dataset: it needs __getitem__ and __len__, or be a tensor")
    return len(dataset)


def _tensors(dataset: Any) -> tuple[Tensor, ...] | None:
    """The tensors of a dataset that is nothing but tensors."""
    if isinstance(dataset, Tensor):
        return (dataset,)
    if type(dataset) is TensorDataset:
        return dataset.tensors
    if isinstance(dataset, tuple) and dataset:
        return dataset if all(isinstance(t, Tensor) for t in dataset) else None
    return None
