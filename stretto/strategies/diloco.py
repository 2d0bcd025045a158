"""DiLoCo: many steps by each agent, then one step of all by an outer optimizer."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Codec, Strategy, Topology
from stretto.exchanges.allreduce import AllReduce
from stretto.landings import Replace
from stretto.outers import Nesterov
from stretto.schedules import Every
from stretto.text import call_text, coerce, named
from stretto.topologies.auto import Auto


@named("diloco", kind="strategy")
def diloco(
    every: int = 64,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.9,
    *,
    topology: Topology | str = Auto(),  # noqa: B008
    codec: Codec | str = Identity(),  # noqa: B008
) -> Strategy:
    """``every`` batches by each agent's own optimizer; the mean drift is the gradient of an outer Nesterov step.

    With ``outer_lr=1`` and ``outer_momentum=0`` it is ``local_sgd``. The drift bears codecs of few bits.

    A death costs what the dead had trained since the last exchange: its samples are trained by others. Survivors lose
    nothing. A newcomer begins with the weights and the outer momentum that all share, and with a fresh inner optimizer.

    Bytes: 2 * (n - 1) / n * S / every

    When: the network is slow: try it first, with codec=int4

    Douillard et al.: DiLoCo: Distributed Low-Communication Training of Language Models, 2023 (arXiv 2311.08105),
    algorithm 1.

    Raises:
        UsageError: ``every`` is below 1, or the outer rates cannot be.

    >>> str(diloco(32, codec="int4"))
    'diloco(32, codec=int4)'
    """
    along: Topology = coerce(topology, "topology")
    wire: Codec = coerce(codec, "codec")
    values = {"every": every, "outer_lr": outer_lr, "outer_momentum": outer_momentum, "topology": along, "codec": wire}
    return Strategy(
        signal="drift",
        schedule=Every(every),
        exchange=AllReduce(along),
        codec=wire,
        outer=Nesterov(outer_lr, outer_momentum),
        landing=Replace(),
        text=call_text(diloco, values),
    )
