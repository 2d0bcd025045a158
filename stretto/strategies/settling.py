"""What strategies whose agents mix have in common: all agree on who trained what, and on weights only when asked."""

from __future__ import annotations

from stretto.core import Beside, Codec, Strategy
from stretto.exchanges.allreduce import AllReduce
from stretto.landings import Replace
from stretto.outers import Mean
from stretto.schedules import Settled
from stretto.topologies.auto import Auto


def settling(settle: int, codec: Codec, beside: Beside, text: str) -> Strategy:
    """Agents mix as ``beside`` says; every ``settle`` batches all agree, while they train, on who trained what.

    What comes of that they wait for half as many batches later. The mean of all weights is agreed on when somebody
    comes, when asked, and at the end.

    Raises:
        UsageError: ``settle`` is below 1.
    """
    return Strategy(
        signal="drift",
        schedule=Settled(settle),
        exchange=AllReduce(Auto()),
        codec=codec,
        outer=Mean(),
        landing=Replace(settle // 2),
        beside=beside,
        text=text,
    )
