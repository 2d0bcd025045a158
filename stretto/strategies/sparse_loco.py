"""SparseLoCo: many steps by each agent, then the few largest of what moved, in two bits each."""

from __future__ import annotations

from dataclasses import replace

from stretto.codecs.chain import Chain
from stretto.codecs.feedback import Feedback
from stretto.codecs.integers import Int2
from stretto.codecs.topk import TopK
from stretto.core import Codec, Strategy, Topology
from stretto.strategies.diloco import diloco
from stretto.text import call_text, coerce, named
from stretto.topologies.auto import Auto


@named("sparse_loco", kind="strategy")
def sparse_loco(
    every: int = 32,
    fraction: float = 0.03,
    outer_lr: float = 1.0,
    *,
    decay: float = 0.95,
    values: Codec | str = Int2(),  # noqa: B008
    topology: Topology | str = Auto(),  # noqa: B008
) -> Strategy:
    """``diloco(every, outer_lr, 0, codec=feedback(topk(fraction)+values, decay=decay))``.

    ``every`` batches by each agent's own optimizer; the drift is added to ``decay`` of what was held back of those
    before, and the largest ``fraction`` of the elements of that are taken out and sent, written by ``values``. What is
    held back takes the place of the outer momentum: where drifts agree it grows until it is sent. A ``fraction`` of
    0.01 to 0.03 is usual; where there are few exchanges in a run, 0.1 learns quicker.

    The largest are of all elements that one owner adds, not of each 4,096 as in the paper. The mean is written by the
    same codec once more, as that of every codec is; in the paper each agent reads all the others', which is more bytes.

    A death costs what the dead had trained since the last exchange, whose samples are trained by others, and what it
    held back of its drifts. Survivors lose nothing. A newcomer begins with the weights that all agreed on last, with
    nothing held back, and with a fresh inner optimizer.

    Bytes: 2 * (n - 1) / n * S / every

    When: the network is so slow that four bits of everything are too many

    Sarfi, Thérien, Lidin, Belilovsky: Communication Efficient LLM Pre-training with SparseLoCo, 2025 (arXiv
    2508.15706), algorithm 1.

    Raises:
        UsageError: ``every`` is below 1, ``fraction`` or ``decay`` not above 0 and at most 1, ``outer_lr`` not above 0;
            or ``values`` may lose more than there is.

    >>> str(sparse_loco(16, 0.01))
    'sparse_loco(16, 0.01)'
    """
    along: Topology = coerce(topology, "topology")
    written: Codec = coerce(values, "codec")
    codec = Feedback(Chain(TopK(fraction), written), decay=decay)
    arguments = {
        "every": every,
        "fraction": fraction,
        "outer_lr": outer_lr,
        "decay": decay,
        "values": written,
        "topology": along,
    }
    found = diloco(every, outer_lr, 0.0, topology=along, codec=codec)
    return replace(found, text=call_text(sparse_loco, arguments))
