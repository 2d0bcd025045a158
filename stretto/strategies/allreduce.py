"""Synchronous data parallelism: every agent's gradient becomes the mean of all, every step."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Codec, Strategy, Topology
from stretto.errors import UsageError
from stretto.exchanges.allreduce import AllReduce
from stretto.landings import Replace
from stretto.outers import Mean
from stretto.schedules import Every
from stretto.text import call_text, coerce, named
from stretto.topologies.auto import Auto
from stretto.topologies.native import Native


@named("allreduce", kind="strategy")
def allreduce(*, topology: Topology | str = Auto(), codec: Codec | str = Identity()) -> Strategy:  # noqa: B008
    """N agents do what one process would do on the whole batch.

    A death costs time and nothing else: the step it happens in is applied by all survivors, where together they have
    all of it, or done again by them, from gradients still at hand. The samples of the dead are trained by others.

    Bytes: 2 * (n - 1) / n * S

    When: the network is quick, or every bit of the result counts

    >>> str(allreduce(topology="ring"))
    'allreduce(topology=ring)'

    Raises:
        UsageError: a codec along ``native``.
    """
    along: Topology = coerce(topology, "topology")
    wire: Codec = coerce(codec, "codec")
    written = call_text(allreduce, {"topology": along, "codec": wire})
    if isinstance(along, Native) and wire != Identity():
        raise UsageError(
            f"{written}: a link's own all-reduce adds tensors as they are, not codes: use topology=auto with a codec"
        )
    return Strategy(
        signal="gradient",
        schedule=Every(1),
        exchange=AllReduce(along),
        codec=wire,
        outer=Mean(),
        landing=Replace(),
        text=written,
    )
