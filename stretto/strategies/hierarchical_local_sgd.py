"""Hierarchical local SGD: often the mean of a machine's agents, and seldom the mean of all."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Beside, Codec, Strategy, Topology
from stretto.errors import UsageError
from stretto.exchanges.allreduce import AllReduce
from stretto.exchanges.within import Within
from stretto.landings import Replace
from stretto.outers import Mean
from stretto.schedules import Every
from stretto.text import call_text, coerce, named
from stretto.topologies.auto import Auto


@named("hierarchical_local_sgd", kind="strategy")
def hierarchical_local_sgd(
    inner: int = 4,
    outer: int = 64,
    *,
    topology: Topology | str = Auto(),  # noqa: B008
    codec: Codec | str = Identity(),  # noqa: B008
) -> Strategy:
    """Every ``inner`` batches the mean of the weights within each machine, every ``outer`` batches the mean of all.

    ``topology`` and ``codec`` are for the mean of all; within a machine weights are exchanged as they are. With one
    agent on each machine it is ``local_sgd(outer)``.

    A death costs the means within its machine until all agree, which is next, and what the dead had trained since all
    last agreed: others train its samples. What its neighbours had of it by their means remains in their weights.

    Bytes: 2 * (m - 1) / m * B * (1 / inner - 1 / outer) + 2 * (n - 1) / n * S / outer

    When: several agents share a machine, and the network between machines is slow

    Lin et al.: Don't use large mini-batches, use local SGD, ICLR 2020 (arXiv 1808.07217), hierarchical local SGD.

    Raises:
        UsageError: ``inner`` is below 1, or not below ``outer``.

    >>> str(hierarchical_local_sgd(2, 32, codec="int8"))
    'hierarchical_local_sgd(2, 32, codec=int8)'
    """
    along: Topology = coerce(topology, "topology")
    wire: Codec = coerce(codec, "codec")
    values = {"inner": inner, "outer": outer, "topology": along, "codec": wire}
    written = call_text(hierarchical_local_sgd, values)
    inside, across = Every(inner), Every(outer)
    if inner >= outer:
        raise UsageError(f"{written}: inner={inner} must be below outer={outer}; inner=4, outer=64 is usual")
    return Strategy(
        signal="drift",
        schedule=across,
        exchange=AllReduce(along),
        codec=wire,
        outer=Mean(),
        landing=Replace(),
        beside=Beside(inside, Within()),
        text=written,
    )
