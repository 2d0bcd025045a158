"""NoLoCo: an outer optimizer at every agent, whose steps are averaged with one random peer instead of with all."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Beside, Codec, Strategy
from stretto.exchanges.apart import check_apart
from stretto.exchanges.noloco import NoLoCo
from stretto.schedules import Every
from stretto.strategies.settling import settling
from stretto.text import call_text, coerce, named


@named("noloco", kind="strategy")
def noloco(
    every: int = 50,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.5,
    gamma: float = 0.7,
    *,
    settle: int = 16,
    codec: Codec | str = Identity(),  # noqa: B008
) -> Strategy:
    """``every`` batches by each agent's own optimizer, then an outer step of momentum by each, averaged over a pair.

    Sent: to one random peer the drift and the slow weights (both from where all agreed last): two tensors, however
    many agents there are. Two that meet wait for each other, and for nobody else; stale by nothing. ``gamma`` draws
    slow weights together. All agree on their mean only when somebody comes, when asked, and at the end; every
    ``settle`` batches they agree, while they train, on who trained what.

    A death costs what the dead had trained and its peers do not hold; its peer of that time keeps its own weights.
    Meetings fail until survivors settle again; then they agree anew, on the mean of theirs, and all outer momenta begin
    at zero. What the dead had trained since they last settled is trained by others.

    Bytes: 2 * S / every

    When: there are so many agents that an agreement of all takes too long

    Kolehmainen et al.: NoLoCo: No-all-reduce low communication training method for large models, 2025
    (arXiv 2506.10911), section 3, with the rates of its experiments.

    Raises:
        UsageError: ``every`` is below 1, the rates cannot be, or the codec's payloads cannot be read one by one.

    >>> str(noloco(32, codec="int8"))
    'noloco(32, codec=int8)'
    """
    wire: Codec = coerce(codec, "codec")
    values = {
        "every": every, "outer_lr": outer_lr, "outer_momentum": outer_momentum, "gamma": gamma, "settle": settle,
        "codec": wire,
    }  # fmt: skip
    written = call_text(noloco, values)
    check_apart(wire, written)
    return settling(settle, wire, Beside(Every(every), NoLoCo(outer_momentum, outer_lr, gamma)), written)
