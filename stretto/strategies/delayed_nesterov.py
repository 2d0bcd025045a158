"""Asynchronous local SGD: each agent's drift lands when it comes, and the momentum of all once a round."""

from __future__ import annotations

from stretto.codecs.identity import Identity
from stretto.core import Codec, Strategy
from stretto.errors import UsageError
from stretto.exchanges.apart import check_apart
from stretto.landings import Replace
from stretto.outers import DelayedNesterov
from stretto.schedules import Every
from stretto.server.value import Server
from stretto.text import call_text, coerce, named


@named("delayed_nesterov", kind="strategy")
def delayed_nesterov(
    every: int = 32,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.9,
    *,
    staleness: int | None = None,
    codec: Codec | str = Identity(),  # noqa: B008
    pull: Codec | str = Identity(),  # noqa: B008
    replicas: int = 0,
    slot: int = 0,
) -> Strategy:
    """``every`` batches by each agent's own optimizer; then it pushes its drift, and goes on from what servers have.

    ``diloco`` in which nobody waits: servers land each drift when it comes, as one n-th of an outer step, and
    accelerate by the momentum of the last n together. An agent pushes before its ``every`` batches are trained where
    all stop: for a checkpoint, a newcomer, and at the end.

    A death costs what the dead had trained since its last push: its samples are trained by others. Survivors lose
    nothing. A newcomer begins with the values that servers have, and with a fresh inner optimizer.

    Args:
        staleness: nobody begins a window when it is more than so many ahead of the slowest; none: nobody waits.
        codec, pull: how drifts are written, and values.
        replicas: how many hold each slot; 0: two, where there are two who can.
        slot: bytes of a slot; 0: an eighth of the model, within bounds.

    Bytes: ((n - 1) / n * (S + B) + S) / every

    When: the network is slow, and some agents are always slower than others

    Liu et al.: Asynchronous Local-SGD Training for Language Modeling, 2024 (arXiv 2401.09135), algorithm 3.

    Raises:
        UsageError: ``every`` is below 1, the outer rates cannot be, or ``staleness`` is 0: that is ``diloco``.

    >>> str(delayed_nesterov(16, codec="int8"))
    'delayed_nesterov(16, codec=int8)'
    """
    values = {"every": every, "outer_lr": outer_lr, "outer_momentum": outer_momentum, "staleness": staleness}
    codecs: dict[str, Codec] = {"codec": coerce(codec, "codec"), "pull": coerce(pull, "codec")}
    text = call_text(delayed_nesterov, {**values, **codecs, "replicas": replicas, "slot": slot})
    for one in codecs.values():
        check_apart(one, text)
    if staleness == 0:
        raise UsageError(f"{text}: with staleness 0 all land together: use diloco({every}), or staleness=4, or none")
    return Strategy(
        signal="drift",
        schedule=Every(every),
        exchange=Server(staleness, pull=codecs["pull"], replicas=replicas, slot=slot),  # type: ignore[arg-type]
        codec=codecs["codec"],
        outer=DelayedNesterov(outer_lr, outer_momentum),
        landing=Replace(),
        text=text,
    )
