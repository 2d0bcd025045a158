"""Training on parameter servers: all agents step together, at most so many steps apart, or each as it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stretto.codecs.identity import Identity
from stretto.core import Codec, Strategy
from stretto.exchanges.apart import check_apart
from stretto.landings import Replace
from stretto.outers import Mean
from stretto.schedules import Every
from stretto.server.value import Server
from stretto.text import call_text, coerce, named


@named("bsp", kind="strategy")
def bsp(
    *,
    codec: Codec | str = Identity(),  # noqa: B008
    pull: Codec | str = Identity(),  # noqa: B008
    replicas: int = 0,
    slot: int = 0,
) -> Strategy:
    """Servers make one step with the mean of all gradients, when they are there (bulk synchronous parallel).

    What ``allreduce`` does, but the optimizer's state lies in slots, one copy in all (and its replicas), and its step
    is made once.

    A death costs what it costs in ``allreduce``: a step that some slots have made and others not is taken back, and
    made by survivors; the samples of the dead are trained by others.

    Chen, Monga, Bengio, Jozefowicz: Revisiting distributed synchronous SGD, 2016 (arXiv 1604.00981), without its backup
    workers; slots have chains of copies (van Renesse and Schneider, OSDI 2004).

    Bytes: (n - 1) / n * (S + B) + S

    When: all agents are equally quick, and the optimizer's memory or its step is a burden
    """
    return _served(bsp, 0, {"codec": codec, "pull": pull}, {"replicas": replicas, "slot": slot})


@named("ssp", kind="strategy")
def ssp(
    staleness: int = 4,
    *,
    codec: Codec | str = Identity(),  # noqa: B008
    pull: Codec | str = Identity(),  # noqa: B008
    damped: bool = False,
    compensate: float = 0.0,
    replicas: int = 0,
    slot: int = 0,
) -> Strategy:
    """Servers step with each gradient as it comes; nobody begins a step more than ``staleness`` ahead of the slowest.

    With staleness 0 it is ``bsp``. Who holds the others up for long is dealt smaller batches.

    A death costs what the dead had not pushed: others train its samples. A push on its way may be in some slots and
    not in others, one batch at most.

    Ho et al.: More effective distributed ML via a stale synchronous parallel parameter server, NeurIPS 2013; DC-ASGD:
    Zheng et al., ICML 2017 (arXiv 1609.08326), equation 10.

    Args:
        damped: a gradient that is tau pushes old counts 1 / (1 + tau).
        compensate: lambda of DC-ASGD (Zheng et al. 2017, arXiv 1609.08326); 0: not at all.
        replicas: how many hold each slot; 0: two, where there are two who can.
        slot: bytes of a slot; 0: an eighth of the model, within bounds.

    Bytes: (n - 1) / n * (S + B) + S

    When: agents are now quick and now slow, and about equal in the long run
    """
    more = {"damped": damped, "compensate": compensate, "replicas": replicas, "slot": slot}
    return _served(ssp, staleness, {"codec": codec, "pull": pull}, more)


@named("asp", kind="strategy")
def asp(
    *,
    codec: Codec | str = Identity(),  # noqa: B008
    pull: Codec | str = Identity(),  # noqa: B008
    damped: bool = False,
    compensate: float = 0.0,
    replicas: int = 0,
    slot: int = 0,
) -> Strategy:
    """Servers step with each gradient as it comes, and nobody waits (asynchronous parallel); see ``ssp``.

    A death costs what it costs in ``ssp``.

    Dean et al.: Large scale distributed deep networks, NeurIPS 2012 (Downpour SGD); DC-ASGD: Zheng et al., ICML 2017
    (arXiv 1609.08326), equation 10.

    Bytes: (n - 1) / n * (S + B) + S

    When: some agents are always slower than others, or gradients are sparse
    """
    more = {"damped": damped, "compensate": compensate, "replicas": replicas, "slot": slot}
    return _served(asp, None, {"codec": codec, "pull": pull}, more)


def _served(
    made: Callable[..., Strategy], staleness: int | None, codecs: dict[str, Codec | str], more: Mapping[str, object]
) -> Strategy:
    """A point of the space whose exchange is a server."""
    coerced: dict[str, Codec] = {name: coerce(codec, "codec") for name, codec in codecs.items()}
    bound = {"staleness": staleness} if made is ssp else {}
    text = call_text(made, {**bound, **coerced, **more})
    for codec in coerced.values():
        check_apart(codec, text)
    exchange = Server(staleness, pull=coerced["pull"], **more)  # type: ignore[arg-type]
    return Strategy(
        signal="gradient",
        schedule=Every(1),
        exchange=exchange,  # type: ignore[arg-type]
        codec=coerced["codec"],
        outer=Mean(),
        landing=Replace(),
        text=text,
    )
