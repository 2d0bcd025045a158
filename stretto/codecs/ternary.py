"""Three levels: the sign of an element times its block's largest magnitude, or nothing, by chance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from stretto.codecs.integers import Rounded
from stretto.text import named


@named("ternary", kind="codec")
@dataclass(frozen=True)
class Ternary(Rounded):
    """−1, 0 or 1 times the largest magnitude of the block, so that the mean over draws is the tensor."""

    paper: ClassVar[str] = "Wen et al. 2017, TernGrad (arXiv 1705.07878), section 3.1"
    when: ClassVar[str] = "gradients of many agents, whose noise averages out; without feedback"
    bits: ClassVar[int] = 2
    levels: ClassVar[float] = 1
    offset: ClassVar[float] = 2
    block: int = field(default=512, kw_only=True)

    @property
    def random(self) -> bool:
        return True
