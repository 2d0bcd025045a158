"""Stochastic gradient push: decentralised SGD along graphs on which agents need not hear as much as they tell."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Beside, Codec, Strategy
from stretto.exchanges.gossip import check_alone
from stretto.exchanges.push_sum import PushSum
from stretto.graphs.directed import DirectedExponential
from stretto.graphs.peers import Peers
from stretto.schedules import Every
from stretto.strategies.settling import settling
from stretto.text import call_text, coerce, named


@named("push_sum", kind="strategy")
def push_sum(
    graph: Peers | str = DirectedExponential(),  # noqa: B008
    every: int = 1,
    *,
    rate: float = 1.0,
    settle: int = 16,
    codec: Codec | str = Identity(),  # noqa: B008
) -> Strategy:
    """As ``gossip_sgd``, along any ``graph``: weights that mixing would favour are divided by how much it favours them.

    Beside the weights each agent sends a number to those it tells. ``random_push`` is the graph that costs least: one
    message an agent, to whom it likes.

    A death costs what it costs in ``gossip_sgd``; the numbers begin at one again.

    Bytes: k * S / every

    When: as gossip_sgd, where not everybody hears as much as it tells

    Assran et al.: Stochastic gradient push for distributed deep learning, ICML 2019 (arXiv 1811.10792), algorithm 1.

    Raises:
        UsageError: ``every``, ``rate`` or ``graph`` cannot be, or the codec needs the mean of all agents.

    >>> str(push_sum("random_push", codec="int8"))
    'push_sum(random_push, codec=int8)'
    """
    along: Peers = coerce(graph, "graph")
    wire: Codec = coerce(codec, "codec")
    check_alone(wire)
    return settling(
        settle,
        wire,
        Beside(Every(every), PushSum(along, rate, every)),
        call_text(push_sum, {"graph": along, "every": every, "rate": rate, "settle": settle, "codec": wire}),
    )
