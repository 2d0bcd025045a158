"""What simulated agents train: a small problem whose every step can be computed again, and the record of who did what.

Sample i pulls the weights towards its own target: its gradient is a_i (w - t_i). So the mean over any set of samples
is exact up to the last bits, whoever computed which part of it, and one process that replays the record
(:meth:`Record.replay`) must end with the same weights.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stretto.core import Named, Strategy
from stretto.landings import Replace
from stretto.ledger import Ranges
from stretto.server.value import Server
from stretto.session import Layout
from stretto.simulate.promises import Broken

if TYPE_CHECKING:
    from stretto.simulate.history import History

RATE = 0.1
MOMENTUM = 0.9


@dataclass(frozen=True)
class Job:
    """``pulls[i]`` and ``pulled[i]`` are a_i and a_i t_i.

    Attributes:
        sizes: numbers in each bucket.
        ballast: bytes more of state.
        measures: do agents measure their network first?
        numbers: before how many of the steps, from 0 to 1, they agree on the mean of a number.
        late: they draw a batch after that, not before.
    """

    pulls: Tensor
    pulled: Tensor
    sizes: tuple[int, ...]
    batch_size: int
    epochs: int
    ballast: int
    measures: bool
    numbers: float
    late: bool

    @property
    def samples(self) -> int:
        return len(self.pulls)

    @property
    def dtype(self) -> torch.dtype:
        return self.pulled.dtype

    @property
    def layouts(self) -> list[Layout]:
        """Each bucket holds one parameter, a matrix where that can be."""
        shapes = [(2, n // 2) if n % 2 == 0 else (n,) for n in self.sizes]
        return [
            Layout(n, (Named(f"layer{i}.weight", s),), str(self.dtype).removeprefix("torch."))
            for i, (n, s) in enumerate(zip(self.sizes, shapes, strict=True))
        ]

    def counts(self, step: int) -> bool:
        """Do all agree on the mean of a number before this step?"""
        return (step * 2654435761 & 0xFFFF) < self.numbers * 0x10000

    def gradient(self, weights: Tensor, picked: list[int]) -> Tensor:
        """The mean over these samples; zeros over none."""
        if not picked:
            return torch.zeros_like(weights)
        index = torch.tensor(picked)
        return weights * self.pulls[index].mean() - self.pulled[index].mean(0)


def job(rng: random.Random, epochs: int = 2) -> Job:
    """Between 24 and 56 samples, ``epochs`` times. A few have more ballast than a piece of healing; a few measure."""
    draw = torch.Generator().manual_seed(rng.randrange(1 << 32))
    samples, first, second = rng.randint(24, 56), rng.randint(3, 7), rng.randint(3, 7)
    pulls = 0.2 + 0.6 * torch.rand(samples, generator=draw, dtype=torch.float64)
    targets = torch.randn(samples, first + second, generator=draw, dtype=torch.float64)
    return Job(
        pulls=pulls,
        pulled=pulls[:, None] * targets,
        sizes=(first, second),
        batch_size=rng.randint(2, 4),
        epochs=epochs,
        ballast=5 << 18 if rng.random() < 0.04 else 0,
        measures=rng.random() < 0.02,
        numbers=rng.random() / 2,
        late=rng.random() < 0.7,
    )


def samples(ranges: Ranges) -> list[int]:
    return [i for start, stop in ranges for i in range(start, stop)]


@dataclass(frozen=True, slots=True)
class Part:
    """What ``uid`` trained of one batch, and how often its mean gradient counts."""

    uid: int
    epoch: int
    ranges: Ranges
    share: float


@dataclass(frozen=True)
class Commit:
    """One step as somebody applied it: what was trained in it, by whom, and the weights after it.

    ``momentum``: of the optimizer that all have alike. ``usual``: when the strategy's schedule says, and not between.
    """

    before: str
    parts: tuple[Part, ...]
    contributors: tuple[int, ...]
    weights: Tensor
    momentum: Tensor
    usual: bool = True


class Record:
    """All steps that anybody applied, by a digest of what led there: a tree; who agrees is at one place of it.

    ``history``: what parameter servers did, where there are any.
    """

    def __init__(self, job: Job, history: History | None = None) -> None:
        self._job = job
        self.history = history
        self._commits: dict[str, Commit] = {}

    def begin(self, weights: Tensor) -> str:
        """The root: nothing is trained, all have these weights."""
        return self._note(Commit("", (), (), weights.clone(), torch.zeros_like(weights)))

    def commit(
        self,
        before: str,
        parts: tuple[Part, ...],
        who: tuple[int, ...],
        weights: Tensor,
        momentum: Tensor,
        *,
        usual: bool = True,
    ) -> str:
        """A step from place ``before``, made of these parts, each agent's in its order, by the uids ``who``."""
        return self._note(Commit(before, parts, tuple(sorted(who)), weights.clone(), momentum.clone(), usual))

    def holds(self, place: str, weights: Tensor, momentum: Tensor) -> bool:
        """Is this the state at that place?"""
        found = self._commits[place]
        return torch.equal(found.weights, weights) and torch.equal(found.momentum, momentum)

    def weights(self, place: str) -> Tensor:
        return self._commits[place].weights

    def check_healed(self, place: str, weights: Tensor, momentum: Tensor) -> None:
        if place not in self._commits:
            raise Broken("a newcomer was given a state that nobody has reached")
        if not self.holds(place, weights, momentum):
            raise Broken("a newcomer was given other weights than those it was told of")

    def before(self, place: str) -> str:
        return self._commits[place].before

    def way(self, place: str) -> list[str]:
        """All places from the root on."""
        found = []
        while place:
            found.append(place)
            place = self._commits[place].before
        return found[::-1]

    def replay(self, place: str, strategy: Strategy) -> float:
        """How far one process that trains the same samples ends from there, relative to the weights.

        0 where the weights depend on more than who trained what between two agreements of all.
        """
        if (
            isinstance(strategy.exchange, Server)
            or strategy.beside is not None
            or strategy.schedule.fragments != 1
            or strategy.landing != Replace()
        ):
            return 0.0
        root, *steps = (self._commits[p] for p in self.way(place))
        apply = self._whole_batches if strategy.signal == "gradient" else self._windows
        weights = apply(root.weights.clone(), steps, strategy)
        found = self._commits[place].weights
        return float((found - weights).abs().max() / weights.abs().max())

    def _whole_batches(self, weights: Tensor, steps: list[Commit], strategy: Strategy) -> Tensor:
        momentum = torch.zeros_like(weights)
        for step in steps:
            picked = [sample for part in step.parts for sample in samples(part.ranges)]
            momentum.mul_(MOMENTUM).add_(self._job.gradient(weights, picked))
            weights.add_(momentum, alpha=-RATE)
        return weights

    def _windows(self, weights: Tensor, steps: list[Commit], strategy: Strategy) -> Tensor:
        """Everybody's window, one after another, from the same weights; then the outer step of their mean drift."""
        outer = strategy.outer.init(weights)
        for step in steps:
            drifts = [weights - self._trained(weights.clone(), uid, step.parts) for uid in step.contributors]
            mean = torch.stack(drifts).mean(0) if drifts else torch.zeros_like(weights)
            move = mean
            if step.usual:
                move, outer = strategy.outer.update(mean, outer)
            weights = weights - move
        return weights

    def _trained(self, weights: Tensor, uid: int, parts: tuple[Part, ...]) -> Tensor:
        for part in parts:
            if part.uid == uid:
                weights.sub_(self._job.gradient(weights, samples(part.ranges)), alpha=RATE * part.share)
        return weights

    def check_samples(self, place: str) -> None:
        """Every sample exactly once in each epoch."""
        times: dict[tuple[int, int], int] = {}
        for part in (part for p in self.way(place) for part in self._commits[p].parts):
            for sample in samples(part.ranges):
                times[part.epoch, sample] = times.get((part.epoch, sample), 0) + 1
        wanted = {(epoch, sample): 1 for epoch in range(self._job.epochs) for sample in range(self._job.samples)}
        if times != wanted:
            odd = sorted(key for key in times.keys() | wanted.keys() if times.get(key) != wanted.get(key))
            epoch, sample = odd[0]
            raise Broken(f"sample {sample} was trained {times.get((epoch, sample), 0)} times in epoch {epoch}")

    def _note(self, commit: Commit) -> str:
        digest = hashlib.blake2s(digest_size=12)
        digest.update(repr((commit.before, commit.parts, commit.contributors)).encode())
        digest.update(commit.weights.numpy().tobytes())
        digest.update(commit.momentum.numpy().tobytes())
        place = digest.hexdigest()
        self._commits[place] = commit
        return place
