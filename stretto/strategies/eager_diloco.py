"""DiLoCo whose outer step is one round behind, so that a round has all the time of the next one to be exchanged."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Codec, Strategy, Topology
from stretto.exchanges.allreduce import AllReduce
from stretto.landings import Restart
from stretto.outers import Nesterov
from stretto.schedules import Every
from stretto.text import call_text, coerce, named
from stretto.topologies.auto import Auto


@named("eager_diloco", kind="strategy")
def eager_diloco(
    every: int = 64,
    guess: float = 1.0,
    *,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.9,
    topology: Topology | str = Auto(),  # noqa: B008
    codec: Codec | str = Identity(),  # noqa: B008
) -> Strategy:
    """As ``diloco``, but the mean drift of a round lands when the next round ends: nobody ever waits for it.

    Until then an agent goes on from an outer step with its own part of the mean (``guess`` times it), which the mean
    replaces when it is there: 1 is eager, and 0 the naive delay, which learns worse.

    Here what all share takes only true means, one round late, and the guess is each agent's own and for one round; in
    the paper guesses stay, and are corrected. With plain outer SGD that is the same.

    A death costs what the dead had trained in the round under way and the one before, at most 2 ``every`` batches; the
    samples that no agreement has are trained by others. Survivors lose nothing. A newcomer comes in at an agreement
    for which all wait, which the others make when they hear of it.

    Bytes: 2 * (n - 1) / n * S / every

    When: an exchange takes up to a whole round of steps

    Kale, Douillard, Donchev: Eager updates for overlapped communication and computation in DiLoCo, 2025 (arXiv
    2502.12996), algorithm 2.

    Raises:
        UsageError: ``every`` is below 1, or rates that cannot be.
    """
    along: Topology = coerce(topology, "topology")
    wire: Codec = coerce(codec, "codec")
    values = {"every": every, "guess": guess, "outer_lr": outer_lr, "outer_momentum": outer_momentum}
    return Strategy(
        signal="drift",
        schedule=Every(every),
        exchange=AllReduce(along),
        codec=wire,
        outer=Nesterov(outer_lr, outer_momentum),
        landing=Restart(every, guess),
        text=call_text(eager_diloco, {**values, "topology": along, "codec": wire}),
    )
