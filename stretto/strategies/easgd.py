"""Elastic averaging: agents are drawn to a centre, and it to them, and keep weights of their own (EASGD)."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Beside, Codec, Strategy, Topology
from stretto.errors import UsageError
from stretto.exchanges.allreduce import AllReduce
from stretto.exchanges.apart import check_apart
from stretto.exchanges.elastic import Elastic
from stretto.landings import Pull
from stretto.outers import Nesterov
from stretto.schedules import Every
from stretto.strategies.settling import settling
from stretto.text import call_text, coerce, named
from stretto.topologies.auto import Auto


@named("easgd", kind="strategy")
def easgd(
    every: int = 10,
    alpha: float = 0.1,
    beta: float = 0.9,
    *,
    topology: Topology | str = Auto(),  # noqa: B008
    codec: Codec | str = Identity(),  # noqa: B008
) -> Strategy:
    """Every ``every`` batches agents go ``alpha`` of the way to the centre, and it goes ``beta`` of that to their mean.

    Both start from where the other was before. The paper's rho is alpha / lr; but a strategy knows no learning rate,
    which changes by the step and under Adam is none, so the product is the parameter, as it is what the paper tunes:
    beta = 0.9, and alpha = beta / agents. With alpha = beta = 1 they change places: the centre becomes the mean of all,
    and each agent goes on from where the centre was.

    Sent: the drift from the centre, by an all-reduce of all agents, who wait for each other. Stale by nothing.

    A death costs what the dead had trained and the centre was not drawn by yet. Its samples are trained by others; the
    survivors keep their weights and their centre. A newcomer begins at the centre.

    Bytes: 2 * (n - 1) / n * S / every

    When: agents shall search apart from each other, around a centre

    Zhang, Choromanska, LeCun: Deep learning with Elastic Averaging SGD, NeurIPS 2015 (arXiv 1412.6651), equations 5, 6.

    Raises:
        UsageError: ``every`` is below 1, or ``alpha`` or ``beta`` not above 0 and at most 1.

    >>> str(easgd(16, 0.225))
    'easgd(16, 0.225)'
    """
    along: Topology = coerce(topology, "topology")
    wire: Codec = coerce(codec, "codec")
    values = {"every": every, "alpha": alpha, "beta": beta, "topology": along, "codec": wire}
    written = call_text(easgd, values)
    for name, rate in ("alpha", alpha), ("beta", beta):
        if not 0 < rate <= 1:
            raise UsageError(f"{written}: {name} must be above 0 and at most 1; alpha 0.1 and beta 0.9 are usual")
    return Strategy(
        signal="drift",
        schedule=Every(every),
        exchange=AllReduce(along),
        codec=wire,
        outer=Nesterov(beta, 0.0),
        landing=Pull(alpha),
        text=written,
    )


@named("async_easgd", kind="strategy")
def async_easgd(
    every: int = 10,
    alpha: float = 0.1,
    *,
    settle: int = 16,
    codec: Codec | str = Identity(),  # noqa: B008
) -> Strategy:
    """Every ``every`` batches of its own an agent and the centre are drawn together; no agent waits for another.

    Sent: the drift from where all agreed last, a slice to each agent, who holds that slice of the centre and answers
    with what draws the two together: a whole drift out and back, in all (n-1)/n of it. Stale by what the others did to
    the centre since this agent's last visit. The paper's alpha is 0.9 / agents.

    All agree on the mean of the agents when somebody comes, when asked, and at the end; the centre begins anew there.
    Every ``settle`` batches all agree on who trained what, so that nobody is further ahead of another than that.

    A death costs what the dead had trained and the centre was not drawn by yet. Visits fail until survivors settle
    again: each keeps its own weights; then they agree anew, on the mean of theirs, and the centre, a slice of which is
    lost, begins there. What the dead had trained since they last settled is trained by others.

    Bytes: 2 * (n - 1) / n * S / every

    When: as easgd, among agents of different speed, or where delays vary

    Zhang, Choromanska, LeCun: Deep learning with Elastic Averaging SGD, NeurIPS 2015 (arXiv 1412.6651), algorithm 1.

    Raises:
        UsageError: ``every`` is below 1, ``alpha`` not between 0 and 1, or the codec's payloads cannot be read one by
            one.

    >>> str(async_easgd(alpha=0.2))
    'async_easgd(alpha=0.2)'
    """
    wire: Codec = coerce(codec, "codec")
    written = call_text(async_easgd, {"every": every, "alpha": alpha, "settle": settle, "codec": wire})
    check_apart(wire, written)
    return settling(settle, wire, Beside(Every(every), Elastic(alpha), behind=True), written)
