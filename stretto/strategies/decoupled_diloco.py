"""Decoupled DiLoCo: the outer step is made when a quorum has come; who is late is merged in the next."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Beside, Codec, Strategy
from stretto.errors import UsageError
from stretto.exchanges.apart import check_apart
from stretto.exchanges.quorum import Quorum
from stretto.schedules import Every
from stretto.strategies.settling import settling
from stretto.text import call_text, coerce, named


@named("decoupled_diloco", kind="strategy")
def decoupled_diloco(
    every: int = 64,
    quorum: float = 0.5,
    grace: float = 0.1,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.9,
    *,
    settle: int | None = None,
    codec: Codec | str = Identity(),  # noqa: B008
) -> Strategy:
    """``diloco``, whose outer step is made when ``quorum`` of the agents have trained ``every`` batches.

    A round stays open for ``grace`` of the time since the round before, and not at all once everybody has come. Who
    comes later goes on from the centre as it is, and its drift is in the next round's mean. With ``quorum=1`` it is
    ``diloco``.

    Sent: the drift from the centre as the agent was last given it, a slice to each agent, who answers with what the
    centre moved since: a whole drift out and back, in all (n-1)/n of it. Stale by the rounds that an agent is late.

    Every ``settle`` batches (default: 2 ``every``) all agree on who trained what, so that nobody is further ahead of
    another than about that: who is slow for a while holds nobody up, and who is always slow all the others, as all
    train as many batches. All agree on the mean of the agents when somebody comes, when asked, and at the end; centre
    and outer momentum begin anew there.

    A death costs what the dead had trained and the centre had not merged yet, and what others had left with it late.
    Rounds fail until survivors settle again: each keeps its own weights; then they agree anew, on the mean of theirs.
    What the dead had trained since they last settled is trained by others. A newcomer begins at that mean.

    Bytes: 2 * (n - 1) / n * S / every

    When: the network is slow, and agents are of different speed from time to time, or stop for a while

    Douillard et al.: Decoupled DiLoCo for resilient distributed pre-training, 2026 (arXiv 2604.21428); an agent is a
    learner there, and here also a part of the synchroniser.

    Raises:
        UsageError: ``every`` is below 1, ``quorum`` not above 0 and at most 1, ``grace`` below 0, ``settle`` below
            ``every``, the outer rates cannot be, or the codec's payloads cannot be read one by one.

    >>> str(decoupled_diloco(32, 0.75, codec="int8"))
    'decoupled_diloco(32, 0.75, codec=int8)'
    """
    wire: Codec = coerce(codec, "codec")
    rates = {"quorum": quorum, "grace": grace, "outer_lr": outer_lr, "outer_momentum": outer_momentum}
    written = call_text(decoupled_diloco, {"every": every, **rates, "settle": settle, "codec": wire})
    check_apart(wire, written)
    beside = Beside(Every(every), Quorum(quorum, grace, outer_lr, outer_momentum))
    between = 2 * every if settle is None else settle
    if between < every:
        raise UsageError(
            f"{written}: settle must be at least every, or agents wait for all before; {2 * every} would do"
        )
    return settling(between, wire, beside, written)
