"""Whatever is large enough travels, and where it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from stretto.codecs.largest import magnitude, reaching
from stretto.codecs.places import Places, count, nbytes
from stretto.codecs.scattered import Scattered
from stretto.codecs.sparse import Split, check_fraction, cut_off, fraction_of, norm, one_vector
from stretto.core import Like, Payload, State
from stretto.errors import DamagedPayload, UsageError
from stretto.text import named


@named("threshold", kind="codec")
@dataclass(frozen=True)
class Threshold(Scattered):
    """The elements of magnitude ``value`` or more; of more than ``most`` of all of them (a fraction) the largest.

    How many bytes it takes depends on the data.

    Strom: Scalable distributed DNN training using commodity GPU cloud computing, 2015. That feedback asks for just
    that: Sahu et al.: Rethinking gradient sparsification as total error minimization, 2021.

    Raises:
        UsageError: ``value`` is not a positive number, or ``most`` not above 0 and at most 1.
    """

    paper: ClassVar[str] = (
        "Strom 2015, Scalable Distributed DNN Training Using Commodity GPU Cloud Computing (Interspeech)"
    )
    when: ClassVar[str] = "how much is worth sending changes much from step to step, with feedback"

    value: float = 1e-3
    most: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.value < torch.finfo(torch.float32).max:
            raise UsageError(f"{self}: the value must be a positive number")
        check_fraction(self.most, self, "most")

    @property
    def exact(self) -> bool:
        return False

    def slots(self, like: Like) -> int:
        return fraction_of(like.numel, self.most)

    def written(self, places: Places, like: Like) -> int:
        return len(places)

    def find(self, flat: Tensor, like: Like, state: State) -> tuple[Places, State]:
        return reaching(magnitude(self.value, like.dtype), flat, self.slots(like)), state

    def split(self, payload: Payload, like: Like) -> Split:
        raw = one_vector(payload, self)
        k = count(raw)
        if k > self.slots(like):
            raise DamagedPayload(f"{self} was given {k} values instead of at most {self.slots(like)}")
        return cut_off(raw, k, nbytes(like.numel, k), self)

    def bound(self, x: Tensor) -> float:
        """All that is small; or, where too many are large, what the largest of them leave."""
        small = math.sqrt(x.numel()) * self.value
        left = math.sqrt(1 - fraction_of(x.numel(), self.most) / max(1, x.numel())) * norm(x)
        return min(norm(x), max(small, left))
