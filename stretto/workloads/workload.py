"""What a workload is: data, models to learn them, and settings that get there quickly. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from stretto.errors import UnknownName

Split: TypeAlias = tuple[Tensor, Tensor]
"""What a model is given, ``[samples, ...]``, and what it is to say, int64: ``[samples]``, or ``[samples, places]``.

Images are float32 in [0, 1], ``[samples, 1, side, side]``, each with a label. Text is int64, ``[samples, context]``,
each character with the one after it. Ratings are float32 ``[samples]``, of users and items, int64 ``[samples, 2]``.
"""


@dataclass(frozen=True, slots=True)
class Data:
    """What to train on, and what to test with.

    Attributes:
        facts: what a model must know of them before, as arguments for it.
        floor: the root of the mean square that the truth itself misses on the test data, where that is known.
    """

    train: Split
    test: Split
    facts: Mapping[str, Any] = field(default_factory=dict)
    floor: float | None = None


def likeliest(scores: Tensor, wanted: Tensor) -> Tensor:
    """Where the answer with the highest score is the right one."""
    return scores.argmax(-1) == wanted


@dataclass(frozen=True, slots=True)
class Workload:
    """A small real task.

    Attributes:
        find: checks that the data are there, in a directory or (None) fetched into the cache, and says where.
        load: reads them, from the same directory.
        samples: to train on.
        models: by name; each call, with the facts of the data, makes a new one from torch's global generator. It gives
            scores of all answers in its last dimension, or what :attr:`right` judges.
        usual: the name of the model that is trained where none is asked for.
        loss: the mean over a batch, of scores and of what was to be said.
        lr: the optimizer's learning rate.
        batch_size: samples of all agents together in a step.
        rule: makes the optimizer.
        right: which answers are right: bool, of the shape of what was to be said.
        squared: the loss is a mean of squares, and its root on the test data is the result.
        made: without data it makes its own.
        tables: its models can be made with ``sparse=True``, for strategies that take gradients by rows.
    """

    name: str
    about: str
    find: Callable[[Path | None], Path | None]
    load: Callable[[Path | None], Data]
    samples: int
    models: Mapping[str, Callable[..., nn.Module]]
    usual: str
    loss: Callable[[Tensor, Tensor], Tensor]
    lr: float
    batch_size: int
    epochs: int
    rule: Callable[..., Optimizer] = Adam
    right: Callable[[Tensor, Tensor], Tensor] = likeliest
    squared: bool = False
    made: bool = False
    tables: bool = False

    def model(self, name: str, **facts: Any) -> nn.Module:
        """A new model, for data of these ``facts``.

        Raises:
            UnknownName: the workload has no such model.
        """
        if name not in self.models:
            raise UnknownName(f"model of {self.name}", name, self.models)
        return self.models[name](**facts)

    def batch_of(self, agents: int) -> int:
        """Samples of one of ``agents`` in a step, at least 1."""
        return max(1, self.batch_size // agents)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return self.rule(model.parameters(), lr=self.lr)
