"""Who trains which sample when: every sample exactly once an epoch, for any number of agents.

*Theory of operation.* An epoch is one permutation of the samples, the same on every agent. It is cut into S global
batches, and each of those into one contiguous part an agent, both by the floor rule: piece i of n out of k is
[⌊i·k/n⌋, ⌊(i+1)·k/n⌋). With G = agents x batch_size, S = min(⌈N/G⌉, ⌊N/agents⌋): the second bound leaves no agent
without a sample in any step. So parts differ by at most one sample, and the global batches depend on G alone: N agents
train what one process with the whole batch would. Where the parts differ, an agent's gradient is weighted by its share,
and the mean over agents is the exact mean over samples.

Only with ``batch_size=1``, and a number of agents that does not divide the samples, does a part exceed ``batch_size``:
some then hold 2 samples.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from stretto.errors import UsageError


@dataclass(frozen=True, slots=True)
class Plan:
    """How ``samples`` positions are dealt to ``agents`` in ``steps`` steps; the same for every epoch."""

    samples: int
    agents: int
    steps: int

    def batch(self, step: int) -> range:
        """The positions of the epoch's permutation that all agents train together in ``step``."""
        return _piece(self.samples, self.steps, step)

    def part(self, step: int, rank: int) -> range:
        """The positions of one agent in ``step``; never empty."""
        whole = self.batch(step)
        piece = _piece(len(whole), self.agents, rank)
        return whole[piece.start : piece.stop]

    def share(self, step: int, rank: int) -> float:
        """What this agent's gradient weighs: the mean over agents of share x gradient is the mean over samples."""
        return len(self.part(step, rank)) * self.agents / len(self.batch(step))


def plan(samples: int, agents: int, batch_size: int) -> Plan:
    """The plan for ``batch_size`` samples an agent and step.

    Raises:
        UsageError: fewer samples than agents, or a size below 1.
    """
    if agents < 1 or batch_size < 1:
        raise UsageError(f"agents and batch_size must be at least 1; got {agents} and {batch_size}")
    if samples < agents:
        raise UsageError(
            f"more agents than samples: {agents} agents, {samples} samples; "
            + (f"start at most {samples} agents, or bring more data" if samples else "the dataset is empty")
        )
    wanted = -(-samples // (agents * batch_size))
    return Plan(samples, agents, min(wanted, samples // agents))


def permutation(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch: int64 ``[samples]``, the same on every agent and machine."""
    generator = torch.Generator().manual_seed(_mix(seed, epoch))
    return torch.randperm(samples, generator=generator)


class Shard:
    """One agent's batches over all epochs; iterate it once or again, it begins at epoch 0 each time.

    Args:
        dataset: a map-style dataset, a tensor, or a tuple of tensors that share their first dimension; tensors (and a
            ``TensorDataset``) are indexed a batch at a time.
        batch_size: samples of this agent in a step.
        rank, size: which agent this is, of how many.
        workers: processes that load samples; tensors need none.
        shuffle: a new permutation each epoch, or the order of the dataset.
        on_batch: called with the agent's share (see :meth:`Plan.share`) before each batch is handed out.

    Attributes:
        plan: how the samples are dealt.
        epoch: the epoch of the batch handed out last.

    Raises:
        UsageError: the dataset has no length, or fewer samples than agents.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        epochs: int = 1,
        seed: int = 0,
        rank: int = 0,
        size: int = 1,
        workers: int = 0,
        shuffle: bool = True,
        on_batch: Callable[[float], None] | None = None,
    ) -> None:
        if epochs < 1 or workers < 0:
            raise UsageError(f"epochs must be at least 1 and workers at least 0; got {epochs} and {workers}")
        if not 0 <= rank < size:
            raise UsageError(f"agent {rank} of {size}: the rank must be from 0 to {size - 1}")
        self.dataset = dataset
        self.plan = plan(_length(dataset), size, batch_size)
        self.epochs = epochs
        self.epoch = 0
        self._seed, self._rank, self._workers, self._shuffle = seed, rank, workers, shuffle
        self._on_batch = on_batch

    def __len__(self) -> int:
        """Steps over all epochs."""
        return self.plan.steps * self.epochs

    def indices(self, epoch: int) -> Iterator[Tensor]:
        """This agent's sample numbers in one epoch, step by step: int64 ``[part]``."""
        samples = self.plan.samples
        order = permutation(samples, self._seed, epoch) if self._shuffle else torch.arange(samples)
        for step in range(self.plan.steps):
            part = self.plan.part(step, self._rank)
            yield order[part.start : part.stop]

    def __iter__(self) -> Iterator[Any]:
        tensors = _tensors(self.dataset)
        batches = self._load() if tensors is None else self._gather(tensors)
        for number, batch in enumerate(batches):
            self.epoch, step = divmod(number, self.plan.steps)
            if self._on_batch:
                self._on_batch(self.plan.share(step, self._rank))
            yield batch

    def _all_indices(self) -> Iterator[Tensor]:
        return itertools.chain.from_iterable(self.indices(epoch) for epoch in range(self.epochs))

    def _gather(self, tensors: tuple[Tensor, ...]) -> Iterator[Any]:
        for index in self._all_indices():
            batch = tuple(t.index_select(0, index.to(t.device)) for t in tensors)
            yield batch[0] if isinstance(self.dataset, Tensor) else batch

    def _load(self) -> Iterator[Any]:
        """One loader over all epochs: its workers live as long, and prefetch across the epochs' borders.

        The loader's own generator keeps it from drawing on the global one, and gives each agent's workers other seeds.
        """
        return iter(
            DataLoader(
                cast("Dataset[Any]", self.dataset),
                batch_sampler=_Lists(self._all_indices),
                num_workers=self._workers,
                generator=torch.Generator().manual_seed(_mix(self._seed, -1 - self._rank)),
            )
        )


class _Lists:
    """Index tensors as the lists that a DataLoader wants, made as they are asked for."""

    def __init__(self, tensors: Callable[[], Iterator[Tensor]]) -> None:
        self.tensors = tensors

    def __iter__(self) -> Iterator[list[int]]:
        return (t.tolist() for t in self.tensors())


def _piece(count: int, pieces: int, number: int) -> range:
    return range(number * count // pieces, (number + 1) * count // pieces)


def _mix(seed: int, stream: int) -> int:
    """63 bits from both numbers, so that neighbouring seeds and epochs have nothing in common."""
    return int.from_bytes(hashlib.blake2s(f"{seed}:{stream}".encode(), digest_size=8).digest()) >> 1


def _length(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset):
        raise UsageError(
            f"{type(dataset).__name__} is an IterableDataset: its samples have no numbers, so they cannot be dealt "
            "once each; use a map-style dataset (with __getitem__ and __len__)"
        )
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
