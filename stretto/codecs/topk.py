"""The largest elements travel, and where they stand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from stretto.codecs.largest import guess, reaching
from stretto.codecs.places import Places
from stretto.codecs.scattered import Scattered
from stretto.codecs.sparse import check_fraction, fraction_of, norm
from stretto.core import Like, State, mixed
from stretto.text import named


@named("topk", kind="codec")
@dataclass(frozen=True)
class TopK(Scattered):
    """The ``fraction`` of the elements with the largest magnitudes, at least one; of equal ones the first. No zeros.

    ``sampled``: whatever reaches a threshold that a sample of 16,384 elements suggests, in one pass always. It sends
    about ``fraction``, never more, and may send almost nothing where the sample misleads: then feedback sends it later.

    Aji, Heafield: Sparse communication for distributed gradient descent, 2017 (with a sampled threshold, too). That it
    converges with feedback: Stich, Cordonnier, Jaggi: Sparsified SGD with memory, 2018, theorem 2.4.

    Raises:
        UsageError: ``fraction`` is not above 0 and at most 1.
    """

    paper: ClassVar[str] = (
        "Aji & Heafield 2017, Sparse Communication for Distributed Gradient Descent (arXiv 1704.05021)"
    )
    when: ClassVar[str] = "the network is slow, with feedback"

    fraction: float = 0.01
    sampled: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.fraction, self)

    @property
    def certain(self) -> bool:
        return not self.sampled

    def init(self, like: Like) -> State:
        return {"draws": 0} if self.sampled else None

    def slots(self, like: Like) -> int:
        return fraction_of(like.numel, self.fraction)

    def find(self, flat: Tensor, like: Like, state: State) -> tuple[Places, State]:
        k, draws = self.slots(like), state["draws"] if self.sampled else 0
        least = guess(flat, k, mixed(like.own, draws), margin=1 if self.sampled else 3)
        places = reaching(least, flat, k)
        if self.sampled:
            return places, {"draws": draws + 1}
        return places if len(places) == k or least == 1 else reaching(1, flat, k), state

    def bound(self, x: Tensor) -> float:
        """No k others hold more of ``x`` than the largest; a sample promises nothing."""
        lost = 1.0 if self.sampled else math.sqrt(1 - fraction_of(x.numel(), self.fraction) / max(1, x.numel()))
        return lost * norm(x)
