"""Codecs that send elements of the tensor as they are, and where each stands."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.codecs.base import not_finite
from stretto.codecs.places import Places, nbytes, read
from stretto.codecs.sparse import Selected, Selecting, finite, flattened
from stretto.core import Like, State


@dataclass(frozen=True)
class Scattered(Selecting):
    """Values of the tensor itself, and where they stand."""

    @property
    def certain(self) -> bool:
        return True

    @abstractmethod
    def find(self, flat: Tensor, like: Like, state: State) -> tuple[Places, State]:
        """Where in ``flat`` what is to be sent stands. What is not finite is there."""

    def room(self, like: Like) -> int:
        return nbytes(like.numel, self.slots(like))

    def written(self, places: Places, like: Like) -> int:
        """How many values are written: what is not a place is zero."""
        return self.slots(like)

    def select(self, x: Tensor, like: Like, state: State) -> Selected:
        flat = flattened(x, like.dtype)
        places, state = self.find(flat, like, state)
        k = self.written(places, like)
        selected = Selected.of(k, like.dtype, nbytes(like.numel, k), state)
        self.fill(selected.values, places, flat, like)
        places.write(k, selected.where)
        return selected

    def fill(self, values: Tensor, places: Places, flat: Tensor, like: Like) -> None:
        """
        Raises:
            NonFinite: as :meth:`select` says.
        """
        places.gather(flat, values[: len(places)])
        values[len(places) :] = 0
        if self.nonfinite == "raise" and not finite(values):
            raise not_finite(flat, like, self)

    def place(self, values: Tensor, where: Tensor, like: Like, state: State) -> Tensor:
        places = read(where, like.numel, values.numel(), self)
        out = torch.zeros(like.numel, dtype=like.dtype)
        places.scatter(values[: len(places)], out)
        return out.view(like.shape)

    def subtract(self, values: Tensor, where: Tensor, y: Tensor, like: Like, state: State) -> None:
        places = read(where, like.numel, values.numel(), self)
        places.scatter(places.gather(y).sub_(values[: len(places)]), y)
