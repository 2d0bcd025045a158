"""DeMo: each agent keeps a momentum of its own, and the frequencies that stand out of it are what all agree on."""

from __future__ import annotations

from dataclasses import replace

from stretto.codecs.dct_topk import DctTopK
from stretto.codecs.feedback import Feedback
from stretto.core import Strategy, Topology
from stretto.strategies.allreduce import allreduce
from stretto.text import call_text, coerce, named
from stretto.topologies.auto import Auto


@named("demo", kind="strategy")
def demo(
    decay: float = 0.999,
    fraction: float = 0.0078125,
    *,
    block: int = 64,
    topology: Topology | str = Auto(),  # noqa: B008
) -> Strategy:
    """Every step: ``allreduce(codec=feedback(dct_topk(fraction, block=block), decay=decay))``.

    The residual is a momentum: the gradient is added to ``decay`` of it, and the largest ``fraction`` of its
    frequencies (of each tile of at most ``block`` by ``block``; by default 32 of 64 by 64) are taken out and sent. The
    mean of what all sent is what the optimizer is given as the gradient.

    So give it an optimizer without momentum. The paper's moves each weight by the rate, against the sign, and decays
    weights apart from that: ``torch.optim.AdamW(parameters, lr=1e-3, betas=(0.0, 0.0), eps=1e-15)``, for where Adam
    remembers nothing its ratio is the sign. With few steps it learns slowly: much of what comes first is held back.

    The mean is written by the same codec once more, as that of every codec is, and what this leaves out comes later;
    in the paper each agent reads all the others', which is more bytes, and in short runs some points more exact.

    A death costs what ``allreduce`` costs, and the momentum that the dead had not sent yet. When members or the
    strategy change, what survivors hold back is added to their next gradients.

    Bytes: 2 * (n - 1) / n * S

    When: the network is very slow, agents are to be alike at every step, and the run is long

    Peng, Quesnelle, Kingma: DeMo: Decoupled Momentum Optimization, 2024 (arXiv 2411.19870), algorithm 1.

    Raises:
        UsageError: ``decay`` or ``fraction`` is not above 0 and at most 1, ``block`` not from 1 to 256; or ``native``.

    >>> str(demo(0.99, topology="ring"))
    'demo(0.99, topology=ring)'
    """
    along: Topology = coerce(topology, "topology")
    found = allreduce(topology=along, codec=Feedback(DctTopK(fraction, block=block), decay=decay))
    values = {"decay": decay, "fraction": fraction, "block": block, "topology": along}
    return replace(found, text=call_text(demo, values))
