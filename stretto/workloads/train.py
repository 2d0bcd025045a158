"""The training loop that ``stretto train`` runs in every agent: what a user would write, plus measuring."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn

from stretto.core import Network, Strategy
from stretto.server import Server
from stretto.text import coerce
from stretto.workloads.result import Outcome, Progress
from stretto.workloads.workload import Split, Workload

FOREVER = 1_000_000
"""Epochs, when something else ends the training."""

PATIENCE = 20
"""With a target alone, training ends after this many times the workload's usual epochs."""

AGREE_EVERY = 10
"""Steps between two looks at the clock of all agents."""

NEWS_EVERY = 0.2
"""Seconds between two progress messages."""

TESTED_AT_ONCE = 250
"""Samples that go through the model together when it is tested."""


class Report(Protocol):
    """What an agent has counted so far."""

    @property
    def bytes_sent(self) -> int: ...
    @property
    def bytes_received(self) -> int: ...
    @property
    def wire_sent(self) -> int: ...
    @property
    def wire_received(self) -> int: ...
    @property
    def waiting(self) -> float: ...
    @property
    def codec_cpu(self) -> float: ...
    @property
    def dense(self) -> int: ...
    @property
    def coded(self) -> int: ...
    @property
    def staleness(self) -> dict[int, int]: ...


class Shard(Protocol):
    """The part of :class:`stretto.data.Shard` that training needs."""

    advanced: tuple[int, int]

    @property
    def in_step(self) -> bool: ...
    def __iter__(self) -> Iterator[Any]: ...
    def proof(self) -> str: ...


class Agent(Protocol):
    """The part of :class:`stretto.agent.Agent` that training needs."""

    @property
    def label(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def network(self) -> Network: ...
    def prepare(self, model: Any, *optimizers: Any, strategy: Any = ...) -> tuple[Any, ...]: ...
    def shard(
        self,
        dataset: Any,
        batch_size: int,
        epochs: int = ...,
        seed: int = ...,
        *,
        meet: int = ...,
        on_meet: Callable[[], object] = ...,
    ) -> Shard: ...
    def mean(self, value: float, /) -> float: ...
    def digest(self) -> str: ...
    def synchronise(self) -> None: ...
    def report(self) -> Report: ...


class Tally:
    """What one agent has trained, and how long the run has: the clock stands still while the model is tested."""

    def __init__(self, agent: Agent, samples: int) -> None:
        self.agent = agent
        self.trained = 0
        self._samples = samples
        self._waited_before = 0.0
        self._sent_before = 0
        self._begin = time.monotonic()
        self._agreed = 0.0

    def begin(self) -> None:
        """The clock starts now."""
        report = self.agent.report()
        self._waited_before, self._sent_before = report.waiting, report.bytes_sent
        self._begin = time.monotonic()

    def agree(self) -> float:
        """What the clocks of all agents show, in the mean."""
        self._agreed = self.agent.mean(self.seconds())
        return self._agreed

    def state_dict(self) -> dict[str, Any]:
        """What a newcomer's clock shows, too."""
        return {"seconds": self._agreed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._agreed = float(state["seconds"])
        self._begin = time.monotonic() - self._agreed

    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def do_not_count(self, since: float) -> None:
        """Take back the time since the clock showed ``since``."""
        self._begin += self.seconds() - since

    def progress(self, shard: Shard, loss: float, accuracy: float | None) -> Progress:
        report = self.agent.report()
        return Progress(
            rank=self.agent.label,
            agents=self.agent.size,
            step=self.agent.steps,
            epoch=max(0, shard.advanced[1] - 1) // self._samples,
            samples=self.trained,
            seconds=self.seconds(),
            loss=loss,
            accuracy=accuracy,
            bytes_sent=report.bytes_sent,
            bytes_received=report.bytes_received,
            waiting=report.waiting - self._waited_before,
        )

    def outcome(
        self,
        last: Progress,
        shard: Shard,
        accuracy: float,
        loss: float,
        report: Report,
        *,
        rmse: float | None,
        floor: float | None,
    ) -> Outcome:
        return Outcome(
            rank=last.rank,
            agents=last.agents,
            steps=last.step,
            samples=last.samples,
            trained=shard.advanced[1],
            proof=shard.proof(),
            seconds=last.seconds,
            accuracy=accuracy,
            loss=loss,
            rmse=rmse,
            floor=floor,
            bytes_sent=last.bytes_sent,
            bytes_received=last.bytes_received,
            wire_sent=report.wire_sent,
            wire_received=report.wire_received,
            waiting=last.waiting,
            sent_training=last.bytes_sent - self._sent_before,
            codec_seconds=report.codec_cpu,
            dense=report.dense,
            coded=report.coded,
            staleness=report.staleness,
            rate=self.agent.network.rate,
            digest=self.agent.digest(),
        )


def train(
    agent: Agent,
    workload: Workload,
    model_name: str,
    *,
    strategy: str = "allreduce",
    epochs: int | None = None,
    seconds: float | None = None,
    target: float | None = None,
    tests: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    data: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Train until the first of ``epochs``, ``seconds`` and ``target`` (test accuracy, 0 to 1); all stop at one step.

    Args:
        tests: after every epoch (four times in one that has a ``target``), and not only at the end.
        batch_size: samples of this agent in a step; without it the workload's, divided among the agents.
        data: the directory of the data, where the workload needs one.
        progress: told a few times a second.
    """
    loaded = workload.load(data)
    samples = len(loaded.train[1])
    batch_size = batch_size or workload.batch_of(agent.size)
    epochs = epochs or _usual_epochs(workload, seconds, target)
    tests_an_epoch = 0 if not tests else 1 if target is None else 4

    torch.manual_seed(seed)
    model = workload.model(model_name, **loaded.facts, **_rows(workload, strategy))
    tally = Tally(agent, samples)
    model, optimizer, _ = agent.prepare(model, workload.optimizer(model), tally, strategy=strategy)
    agent.mean(0.0)  # everybody is here: the clocks start together
    tally.begin()
    judge = _Judge(agent, tally, lambda: evaluate(agent, workload, model, loaded.test), tests, target, seconds)
    meet = samples // (tests_an_epoch or 4)
    shard = agent.shard(loaded.train, batch_size, epochs=epochs, seed=seed, meet=meet, on_meet=judge.look)
    told, loss = -NEWS_EVERY, torch.tensor(0.0)
    for x, y in shard:
        if judge.over:
            break
        loss = workload.loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        # What all decide alike is decided by what all have in common: newcomers count no steps of their own.
        before, after = (trained * tests_an_epoch // samples for trained in shard.advanced)
        tally.trained += len(y)
        now = tally.seconds()
        if now - told >= NEWS_EVERY:
            told = now
            progress(tally.progress(shard, loss.item(), judge.accuracy))
        if not shard.in_step:
            continue
        if after > before and judge.test():
            break
        if seconds is not None and agent.steps % AGREE_EVERY == 0 and tally.agree() >= seconds:
            break

    agent.synchronise()
    report, last = agent.report(), tally.progress(shard, loss.item(), judge.accuracy)
    accuracy, test_loss = judge.last()
    progress(msgspec.structs.replace(last, accuracy=accuracy))
    rmse = math.sqrt(test_loss) if workload.squared else None
    return tally.outcome(last, shard, accuracy, test_loss, report, rmse=rmse, floor=loaded.floor)


class _Judge:
    """Tests the model, by ``evaluate()``, and says when training is ``over``; the same at all agents."""

    def __init__(
        self,
        agent: Agent,
        tally: Tally,
        evaluate: Callable[[], tuple[float, float]],
        tests: bool,
        target: float | None,
        seconds: float | None,
    ) -> None:
        self._agent, self._tally, self._evaluate = agent, tally, evaluate
        self._tests, self._target, self._seconds = tests, target, seconds
        self._tested, self._loss = 0, 0.0
        self.accuracy: float | None = None
        self.over = False

    def test(self) -> bool:
        """Is it good enough?"""
        now = self._tally.seconds()
        self.accuracy, self._loss = self._evaluate()
        self._tested = self._agent.steps
        self._tally.do_not_count(since=now)
        self.over = self._target is not None and self.accuracy >= self._target
        return self.over

    def look(self) -> None:
        """All have stopped: test, and look at the clock."""
        if self._tests:
            self.test()
        self.over |= self._seconds is not None and self._tally.agree() >= self._seconds

    def last(self) -> tuple[float, float]:
        """Accuracy and loss at the end."""
        if self.accuracy is None or self._tested != self._agent.steps:
            self.accuracy, self._loss = self._evaluate()
        return self.accuracy, self._loss


def evaluate(agent: Agent, workload: Workload, model: nn.Module, split: Split) -> tuple[float, float]:
    """Accuracy and mean loss, each agent on its part of the data; the same two numbers on every agent.

    Where an agent dies meanwhile, they are those of the parts of the others.
    """
    given, wanted = (t.tensor_split(agent.size)[agent.rank] for t in split)
    found, lost, count = (agent.mean(float(x)) for x in judged(workload, model, given, wanted))
    return found / count, lost / count


@torch.no_grad()
def judged(workload: Workload, model: nn.Module, given: Tensor, wanted: Tensor) -> tuple[int, float, int]:
    """How many answers are right, the sum of their losses, and how many there are: of text one a character."""
    right, loss = 0, 0.0
    model.eval()
    for x, y in zip(given.split(TESTED_AT_ONCE), wanted.split(TESTED_AT_ONCE), strict=True):
        if len(y):
            scores: Tensor = model(x)
            right += int(workload.right(scores, y).sum())
            loss += float(workload.loss(scores, y)) * y.numel()
    model.train()
    return right, loss, wanted.numel()


def _rows(workload: Workload, strategy: str) -> dict[str, bool]:
    """A server takes gradients by rows, where a model can give them so."""
    chosen: Strategy = coerce(strategy, "strategy")
    served = isinstance(chosen.exchange, Server) and chosen.signal == "gradient"
    return {"sparse": True} if workload.tables and served else {}


def _usual_epochs(workload: Workload, seconds: float | None, target: float | None) -> int:
    if seconds is not None:
        return FOREVER
    return workload.epochs * (1 if target is None else PATIENCE)
