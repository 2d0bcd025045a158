"""What a workload is: data, models to learn them, and settings that get there quickly. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from stretto.errors import UnknownName

Split: TypeAlias = tuple[Tensor, Tensor]
"""What a model is given, ``[samples, ...]``, and what it is to say, int64: ``[samples]``, or ``[samples, places]``.

Images are float32 in [0, 1], ``[samples, 1, side, side]``, each with a label. Text is int64, ``[samples, context]``,
each character with the one after it.
"""


@dataclass(frozen=True, slots=True)
class Data:
    """What to train on, and what to test with."""

    train: Split
    test: Split


@dataclass(frozen=True, slots=True)
class Workload:
    """A small real task.

    Attributes:
        find: checks that the data are there, in a directory or (None) fetched into the cache, and says where.
        load: reads them, from the same directory.
        samples: to train on.
        models: by name; each call makes a new one from torch's global generator. It gives scores of all answers in
            its last dimension.
        usual: the name of the model that is trained where none is asked for.
        loss: the mean over a batch, of scores and of what was to be said.
        lr: Adam's learning rate.
        batch_size: samples of all agents together in a step.
    """

    name: str
    about: str
    find: Callable[[Path | None], Path | None]
    load: Callable[[Path | None], Data]
    samples: int
    models: Mapping[str, Callable[[], nn.Module]]
    usual: str
    loss: Callable[[Tensor, Tensor], Tensor]
    lr: float
    batch_size: int
    epochs: int

    def model(self, name: str) -> nn.Module:
        """A new model.

        Raises:
            UnknownName: the workload has no such model.
        """
        if name not in self.models:
            raise UnknownName(f"model of {self.name}", name, self.models)
        return self.models[name]()

    def batch_of(self, agents: int) -> int:
        """Samples of one of ``agents`` in a step, at least 1."""
        return max(1, self.batch_size // agents)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return Adam(model.parameters(), lr=self.lr)
