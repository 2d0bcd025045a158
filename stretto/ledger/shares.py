"""Who gets more: shares of the samples from measured speeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from stretto.errors import UsageError


def shares_of(speeds: Sequence[float], most: int) -> tuple[int, ...]:
    """Whole shares in proportion to speeds (samples a second): ``most`` to the fastest, at least 1 to everybody.

    A small ``most`` is coarse, so that measuring noise does not become a new deal. Who has not been measured (0, or
    not finite) counts as the median of the others. Shares are in lowest terms: equal speeds give ones.

    >>> shares_of([100.0, 52.0, 0.0], most=4)
    (4, 2, 3)
    """
    if most < 1:
        raise UsageError(f"the largest share must be at least 1; got {most}")
    known = [s for s in speeds if math.isfinite(s) and s > 0]
    if not known:
        return (1,) * len(speeds)
    fastest, usual = max(known), median(known)
    wanted = [s if math.isfinite(s) and s > 0 else usual for s in speeds]
    shares = [max(1, round(s / fastest * most)) for s in wanted]
    common = math.gcd(*shares)
    return tuple(s // common for s in shares)
