"""Synchronous data parallelism: every agent's gradient becomes the mean of all, every step."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Codec, Strategy, Topology
from stretto.exchanges.allreduce import AllReduce
from stretto.outers import Mean
from stretto.schedules import Every
from stretto.text import call_text, coerce, named
from stretto.topologies.auto import Auto


@named("allreduce", kind="strategy")
def allreduce(*, topology: Topology | str = Auto(), codec: Codec | str = Identity()) -> Strategy:  # noqa: B008
    """N agents do what one process would do on the whole batch.

    A death costs the run: every agent stops in the step it happened in, with a ``PeerLost`` that names who went.

    >>> str(allreduce(topology="ring"))
    'allreduce(topology=ring)'
    """
    along: Topology = coerce(topology, "topology")
    wire: Codec = coerce(codec, "codec")
    return Strategy(
        signal="gradient",
        schedule=Every(1),
        exchange=AllReduce(along),
        codec=wire,
        outer=Mean(),
        text=call_text(allreduce, {"topology": along, "codec": wire}),
    )
