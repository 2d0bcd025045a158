"""Decentralised SGD: every agent trains by itself and mixes its weights with its neighbours'."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Beside, Codec, Strategy
from stretto.exchanges.gossip import Gossip, check_alone
from stretto.graphs.peers import Peers
from stretto.graphs.ring import Ring
from stretto.schedules import Every
from stretto.strategies.settling import settling
from stretto.text import call_text, coerce, named


@named("gossip_sgd", kind="strategy")
def gossip_sgd(
    graph: Peers | str = Ring(),  # noqa: B008
    every: int = 1,
    *,
    rate: float = 1.0,
    settle: int = 16,
    codec: Codec | str = Identity(),  # noqa: B008
) -> Strategy:
    """Every ``every`` batches each agent's weights become a weighted mean of its own and its neighbours' on ``graph``.

    Nobody waits for more than its neighbours, and no tensor crosses the network more than once. All agree (on the mean
    of all weights) only when somebody comes, asks, or the run ends; every ``settle`` batches they agree, while they
    train, on who trained what. Sent are drifts since all weights were alike, and what a codec loses of them grows with
    them: ``int8`` and ``randomk(0.1, scaled=false)`` bear that, codecs of few bits do not.

    A death costs mixings: they fail until survivors settle again, and what each has stands meanwhile; then all agree
    anew, on the mean of their weights. What the dead had trained since they last settled is trained by others. What
    others had of it by mixing remains in their weights, and what the dead had of theirs is gone: the mean of the
    weights moves by as much.

    Bytes: k * S / every

    When: there are many agents, or some pairs have no good way between them

    Lian et al.: Can decentralized algorithms outperform centralized algorithms?, NeurIPS 2017 (arXiv 1705.09056),
    algorithm 1, whose gradients are taken before mixing, and here after it.

    Raises:
        UsageError: ``every``, ``rate`` or ``graph`` cannot be, or the codec needs the mean of all agents.

    >>> str(gossip_sgd("torus", 4, codec="int8"))
    'gossip_sgd(torus, 4, codec=int8)'
    """
    along: Peers = coerce(graph, "graph")
    wire: Codec = coerce(codec, "codec")
    check_alone(wire)
    return settling(
        settle,
        wire,
        Beside(Every(every), Gossip(along, rate, every)),
        call_text(gossip_sgd, {"graph": along, "every": every, "rate": rate, "settle": settle, "codec": wire}),
    )
