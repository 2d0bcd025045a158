"""Local SGD: every agent trains by itself for some steps, then all take the mean of their weights."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Codec, Strategy, Topology
from stretto.exchanges.allreduce import AllReduce
from stretto.landings import Replace
from stretto.outers import Mean
from stretto.schedules import After, Every
from stretto.text import call_text, coerce, named
from stretto.topologies.auto import Auto


@named("local_sgd", kind="strategy")
def local_sgd(every: int = 16, *, topology: Topology | str = Auto(), codec: Codec | str = Identity()) -> Strategy:  # noqa: B008
    """``every`` batches by each agent's own optimizer, then the mean of the weights (of their drift since the last).

    With plain SGD and ``every=1`` it is ``allreduce``. Momentum, or what else an optimizer remembers, is each agent's.

    A death costs what the dead had trained since the last exchange: its samples are trained by others. Survivors lose
    nothing. A newcomer begins with the weights that all agreed on last, and with a fresh optimizer.

    Bytes: 2 * (n - 1) / n * S / every

    When: the network is slow, and one parameter is all you wish to tune

    Stich: Local SGD converges fast and communicates little, ICLR 2019 (arXiv 1805.09767), algorithm 1.

    Raises:
        UsageError: ``every`` is below 1.

    >>> str(local_sgd(8, codec="int8"))
    'local_sgd(8, codec=int8)'
    """
    along: Topology = coerce(topology, "topology")
    wire: Codec = coerce(codec, "codec")
    return Strategy(
        signal="drift",
        schedule=Every(every),
        exchange=AllReduce(along),
        codec=wire,
        outer=Mean(),
        landing=Replace(),
        text=call_text(local_sgd, {"every": every, "topology": along, "codec": wire}),
    )


@named("post_local_sgd", kind="strategy")
def post_local_sgd(
    start: int = 100,
    every: int = 16,
    *,
    topology: Topology | str = Auto(),  # noqa: B008
    codec: Codec | str = Identity(),  # noqa: B008
) -> Strategy:
    """The mean of the weights after every batch up to batch ``start``, then as ``local_sgd(every)``.

    A death costs what it costs in ``local_sgd``.

    Bytes: 2 * (n - 1) / n * S / every

    When: the first steps move much, and what comes after them bears drifting apart

    Lin et al.: Don't use large mini-batches, use local SGD, ICLR 2020 (arXiv 1808.07217), section 3.

    Raises:
        UsageError: ``start`` is below 0, or ``every`` below 1.
    """
    along: Topology = coerce(topology, "topology")
    wire: Codec = coerce(codec, "codec")
    return Strategy(
        signal="drift",
        schedule=After(start, every),
        exchange=AllReduce(along),
        codec=wire,
        outer=Mean(),
        landing=Replace(),
        text=call_text(post_local_sgd, {"start": start, "every": every, "topology": along, "codec": wire}),
    )
