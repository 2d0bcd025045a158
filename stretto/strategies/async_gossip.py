"""Asynchronous gossip: every agent averages with one random other, which does not stop for it (AD-PSGD)."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Beside, Codec, Strategy
from stretto.exchanges.apart import check_apart
from stretto.exchanges.pairs import Pairs
from stretto.schedules import Every
from stretto.strategies.settling import settling
from stretto.text import call_text, coerce, named


@named("async_gossip", kind="strategy")
def async_gossip(every: int = 1, *, settle: int = 16, codec: Codec | str = Identity()) -> Strategy:  # noqa: B008
    """After every ``every`` batches of its own an agent averages its weights with those of one random other.

    Sent: the drift from where all agreed last, once to the other and once back; twice its bytes an averaging, each
    agent's part of which is as large as another's. The other answers at once, beside its training, with what it had at
    its own last averaging: stale by up to ``every`` of its batches and the way there. The mean of all weights is never
    changed by an averaging, with any codec. All agree on it only when somebody comes, when asked, and at the end; but
    every ``settle`` batches they agree on who trained what, so that nobody is further ahead of another than that.

    A death costs what the dead had trained that no other had averaged with it yet; what it had trained since they last
    settled is trained by others. Averagings fail until survivors settle again, and then agree anew, on the mean of
    theirs; a newcomer begins there.

    Bytes: 2 * S / every

    When: agents are of different speed, and no two shall wait for each other

    Lian, Zhang, Zhang, Liu: Asynchronous decentralized parallel SGD, ICML 2018 (arXiv 1710.06952), algorithm 1.

    Raises:
        UsageError: ``every`` is below 1, or the codec's payloads cannot be read one by one.

    >>> str(async_gossip(4, codec="int8"))
    'async_gossip(4, codec=int8)'
    """
    wire: Codec = coerce(codec, "codec")
    written = call_text(async_gossip, {"every": every, "settle": settle, "codec": wire})
    check_apart(wire, written)
    return settling(settle, wire, Beside(Every(every), Pairs(), behind=True), written)
