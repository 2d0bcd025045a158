"""Any gradient strategy with its exchange one step behind, so that it hides under the next step."""

from __future__ import annotations

from dataclasses import replace

from stretto.core import Strategy
from stretto.errors import UsageError
from stretto.landings import Replace
from stretto.strategies.allreduce import allreduce
from stretto.text import call_text, coerce, named


@named("delayed", kind="strategy")
def delayed(strategy: Strategy | str = allreduce(), steps: int = 1) -> Strategy:  # noqa: B008
    """``strategy``, with each optimizer step by the mean gradient of the step before, which came during the next.

    Nobody waits where an exchange takes less time than a step. The first step is by a gradient of zeros, and the last
    makes up for it. A learning rate at the edge of what converges must be lower: by about half with plain
    SGD (weights one step old).

    A death costs what it costs in ``strategy``, and no more: the mean under way is applied by all survivors, or done
    again by them. Newcomers come in at a step for which all wait, and which applies two means at once.

    Bytes: 2 * (n - 1) / n * S

    When: an exchange takes about as long as a step, and gradients one step old are borne

    Li, Zheng, et al.: Pipe-SGD: a decentralized pipelined SGD framework for distributed deep net training, NeurIPS 2018
    (arXiv 1811.03619), algorithm 1, with K = 2.

    Raises:
        UsageError: ``strategy`` exchanges something else than gradients, or ``steps`` is not 1: one round at a time is
            under way, so more would be staler and hide no more.

    >>> str(delayed("allreduce(codec=int8)"))
    'delayed(allreduce(codec=int8))'
    """
    inner: Strategy = coerce(strategy, "strategy")
    text = call_text(delayed, {"strategy": inner, "steps": steps})
    if inner.signal != "gradient":
        raise UsageError(f"{text}: {inner} exchanges no gradients; eager_diloco and streaming_diloco overlap drifts")
    if steps != 1 or inner.landing != Replace():
        raise UsageError(f"{text}: one round is under way at a time, so steps=1 hides all that can be: use steps=1")
    return replace(inner, landing=Replace(steps), text=text)
