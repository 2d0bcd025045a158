"""``shakespeare``: 1,115,394 characters of plays, in windows; say at each place which character comes next.

The first nine tenths are to train on and the last to test with. Windows lie end to end, so an epoch predicts every
character once.

Source: A. Karpathy, char-rnn, ``data/tinyshakespeare``; the text is in the public domain.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stretto.workloads.download import Remote, Source, locate
from stretto.workloads.workload import Data, Split

CONTEXT = 64
VOCABULARY = 65
TRAINING = 15_685
TRAINED_SHARE = 0.9

SHAKESPEARE = Source(
    "shakespeare",
    (Remote("input.txt", 1115394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),),
    ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",),
)


def load(folder: Path | None = None) -> Data:
    """15,685 windows to train and 1,742 to test; see :func:`stretto.workloads.download.locate` for where, and errors.

    A character is its number among all that occur, in the order of their codes.
    """
    path = locate(SHAKESPEARE, folder) / "input.txt"
    _, tokens = np.unique(np.fromfile(path, np.uint8), return_inverse=True)
    text = torch.from_numpy(tokens.astype(np.int64))
    at = int(TRAINED_SHARE * len(text))
    return Data(windows(text[:at]), windows(text[at:]))


def windows(text: Tensor, context: int = CONTEXT) -> Split:
    """What is read and what is to be said, both ``[windows, context]``: the second is one character ahead.

    >>> windows(torch.arange(8), context=3)
    (tensor([[0, 1, 2],
            [3, 4, 5]]), tensor([[1, 2, 3],
            [4, 5, 6]]))
    """
    whole = (len(text) - 1) // context * context
    return text[:whole].view(-1, context), text[1 : whole + 1].view(-1, context)


def loss(scores: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross entropy, in nats a character: scores ``[batch, context, vocabulary]``, tokens ``[batch, context]``."""
    return functional.cross_entropy(scores.flatten(0, 1), tokens.flatten())
