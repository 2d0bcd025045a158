"""The training loop that ``stretto train`` runs in every agent: what a user would write, plus measuring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn

from stretto.data import plan
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


class Agent(Protocol):
    """The part of :class:`stretto.agent.Agent` that training needs."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def prepare(self, model: Any, *optimizers: Any, strategy: Any = ...) -> tuple[Any, ...]: ...
    def shard(self, dataset: Any, batch_size: int, epochs: int = ..., seed: int = ...) -> Iterable[Any]: ...
    def mean(self, value: float, /) -> float: ...
    def digest(self) -> str: ...
    def report(self) -> Report: ...


class Tally:
    """What one agent has trained, and how long it took: the clock stands still while the model is tested."""

    def __init__(self, agent: Agent, samples: int, steps_per_epoch: int) -> None:
        self.agent = agent
        self.seen = torch.zeros(samples, dtype=torch.int32)
        self.step = 0
        self._steps_per_epoch = steps_per_epoch
        self._waited_before = agent.report().waiting
        self._begin = time.monotonic()

    def trained(self, samples: Tensor) -> None:
        self.step += 1
        self.seen[samples] += 1

    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def do_not_count(self, since: float) -> None:
        """Take back the time since the clock showed ``since``."""
        self._begin += self.seconds() - since

    def progress(self, loss: float, accuracy: float | None) -> Progress:
        report = self.agent.report()
        return Progress(
            rank=self.agent.rank,
            step=self.step,
            epoch=(self.step - 1) // self._steps_per_epoch,
            samples=int(self.seen.sum()),
            seconds=self.seconds(),
            loss=loss,
            accuracy=accuracy,
            bytes_sent=report.bytes_sent,
            bytes_received=report.bytes_received,
            waiting=report.waiting - self._waited_before,
        )

    def outcome(self, last: Progress, accuracy: float, loss: float, report: Report) -> Outcome:
        return Outcome(
            rank=last.rank,
            steps=last.step,
            samples=last.samples,
            seconds=last.seconds,
            accuracy=accuracy,
            loss=loss,
            bytes_sent=last.bytes_sent,
            bytes_received=last.bytes_received,
            wire_sent=report.wire_sent,
            wire_received=report.wire_received,
            waiting=last.waiting,
            digest=self.agent.digest(),
            seen=self.seen.numpy().tobytes(),
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
    batch_size: int | None = None,
    seed: int = 0,
    data: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Train until the first of ``epochs``, ``seconds`` and ``target`` (test accuracy, 0 to 1); all stop at one step.

    Args:
        batch_size: samples of this agent in a step; without it the workload's, divided among the agents.
        data: the directory of the data, where the workload needs one.
        progress: told a few times a second.
    """
    loaded = workload.load(data)
    samples = len(loaded.train[1])
    batch_size = batch_size or workload.batch_of(agent.size)
    steps_per_epoch = plan(samples, agent.size, batch_size).steps
    test_every = steps_per_epoch if target is None else max(1, steps_per_epoch // 4)
    epochs = epochs or _usual_epochs(workload, seconds, target)

    torch.manual_seed(seed)
    model = workload.model(model_name)
    model, optimizer = agent.prepare(model, workload.optimizer(model), strategy=strategy)
    numbered = (*loaded.train, torch.arange(samples))
    agent.mean(0.0)  # everybody is here: the clocks start together
    tally, told, tested = Tally(agent, samples, steps_per_epoch), -NEWS_EVERY, 0
    accuracy, test_loss, loss = None, 0.0, torch.tensor(0.0)
    for x, y, number in agent.shard(numbered, batch_size, epochs=epochs, seed=seed):
        loss = workload.loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        tally.trained(number)
        now = tally.seconds()
        if now - told >= NEWS_EVERY:
            told = now
            progress(tally.progress(loss.item(), accuracy))
        if tally.step % test_every == 0:
            accuracy, test_loss = evaluate(agent, workload, model, loaded.test)
            tested = tally.step
            tally.do_not_count(since=now)
            if target is not None and accuracy >= target:
                break
        if seconds is not None and tally.step % AGREE_EVERY == 0 and agent.mean(float(now >= seconds)) > 0:
            break

    report, last = agent.report(), tally.progress(loss.item(), accuracy)
    if accuracy is None or tested != tally.step:
        accuracy, test_loss = evaluate(agent, workload, model, loaded.test)
    progress(msgspec.structs.replace(last, accuracy=accuracy))
    return tally.outcome(last, accuracy, test_loss, report)


@torch.no_grad()
def evaluate(agent: Agent, workload: Workload, model: nn.Module, split: Split) -> tuple[float, float]:
    """Accuracy and mean loss, each agent on its part of the data; the same two numbers on every agent."""
    images, labels = (t.tensor_split(agent.size)[agent.rank] for t in split)
    right, loss = 0, 0.0
    model.eval()
    for x, y in zip(images.split(1000), labels.split(1000), strict=True):
        if len(y):
            scores: Tensor = model(x)
            right += int((scores.argmax(1) == y).sum())
            loss += float(workload.loss(scores, y)) * len(y)
    model.train()
    a_part = agent.size / len(split[1])
    return agent.mean(float(right)) * a_part, agent.mean(loss) * a_part


def _usual_epochs(workload: Workload, seconds: float | None, target: float | None) -> int:
    if seconds is not None:
        return FOREVER
    return workload.epochs * (1 if target is None else PATIENCE)
