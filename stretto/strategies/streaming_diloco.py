"""Streaming DiLoCo: fragment after fragment, each sent while the next steps are trained."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Codec, Strategy, Topology
from stretto.errors import UsageError
from stretto.exchanges.allreduce import AllReduce
from stretto.landings import Carry, Mix
from stretto.outers import Nesterov
from stretto.schedules import Staggered
from stretto.text import call_text, coerce, named
from stretto.topologies.auto import Auto


@named("streaming_diloco", kind="strategy")
def streaming_diloco(
    every: int = 64,
    fragments: int = 4,
    overlap: int = 1,
    mix: float | None = None,
    *,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.9,
    topology: Topology | str = Auto(),  # noqa: B008
    codec: Codec | str = Identity(),  # noqa: B008
) -> Strategy:
    """As ``diloco``, but by ``fragments`` of the parameters, one after another, each sent while agents train on.

    Each fragment is exchanged every ``every`` batches; what comes back lands ``overlap`` batches after it was sent.
    What an agent trained meanwhile is carried over, and sent the next time; in the paper, and here with a number for
    ``mix``, that part of an agent's own weights remains instead (0.5 there). The peak of bytes is divided by the
    fragments, and the network has ``overlap`` steps' time for each. With one fragment and ``overlap=0`` it is
    ``diloco``.

    A death costs what the dead had trained since its oldest fragment was exchanged, at most ``every`` batches: these
    samples are trained by others, and may then be twice in some fragments. Survivors lose nothing. A newcomer comes in
    at an exchange of all fragments at once, which the others make when they hear of it.

    Bytes: 2 * (n - 1) / n * S / every

    When: the network is slow and nobody shall wait for it: with codec=int4

    Douillard et al.: Streaming DiLoCo with overlapping communication, 2025 (arXiv 2501.18512), algorithm 2.

    Raises:
        UsageError: more fragments than batches in a round, or (when models are prepared) than parameters; an overlap
            longer than the time between two fragments; or rates that cannot be.

    >>> str(streaming_diloco(32, 4, codec="int4"))
    'streaming_diloco(32, codec=int4)'
    """
    along: Topology = coerce(topology, "topology")
    wire: Codec = coerce(codec, "codec")
    rates = {"outer_lr": outer_lr, "outer_momentum": outer_momentum}
    values = {"every": every, "fragments": fragments, "overlap": overlap, "mix": mix, **rates}
    text = call_text(streaming_diloco, {**values, "topology": along, "codec": wire})
    schedule = Staggered(every, fragments)
    if not 0 <= overlap <= every // fragments:
        raise UsageError(
            f"{text}: overlap={overlap} must be from 0 to the {every // fragments} steps between two fragments: "
            f"use overlap={every // fragments} or fewer fragments"
        )
    return Strategy(
        signal="drift",
        schedule=schedule,
        exchange=AllReduce(along),
        codec=wire,
        outer=Nesterov(outer_lr, outer_momentum),
        landing=Carry(overlap) if mix is None else Mix(mix, overlap),
        text=text,
    )
