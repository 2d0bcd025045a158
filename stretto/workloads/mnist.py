"""``mnist`` and ``fashion-mnist``: 60,000 + 10,000 images of 28 x 28 pixels in four IDX files.

Sources: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits"; H. Xiao, K. Rasul, R. Vollgraf,
"Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms", arXiv:1708.07747 (MIT licence).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stretto.errors import DataError
from stretto.workloads import idx
from stretto.workloads.download import Remote, Source, locate
from stretto.workloads.workload import Data

SIDE = 28
TRAINING = 60_000

MNIST = Source(
    "mnist",
    (
        Remote(
            "train-images-idx3-ubyte.gz",
            9912422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        Remote(
            "train-labels-idx1-ubyte.gz",
            28881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        Remote(
            "t10k-images-idx3-ubyte.gz",
            1648877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        Remote(
            "t10k-labels-idx1-ubyte.gz",
            4542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
)

FASHION = Source(
    "fashion-mnist",
    (
        Remote(
            "train-images-idx3-ubyte.gz",
            26421880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        Remote(
            "train-labels-idx1-ubyte.gz",
            29515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        Remote(
            "t10k-images-idx3-ubyte.gz",
            4422102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        Remote(
            "t10k-labels-idx1-ubyte.gz",
            5148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
)


def load(folder: Path | None, source: Source) -> Data:
    """The images and labels of ``source``; see :func:`stretto.workloads.download.locate` for where, and for errors."""
    folder = locate(source, folder)
    return Data(_split(folder, "train"), _split(folder, "t10k"))


def _split(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images = idx.read(folder / f"{part}-images-idx3-ubyte.gz")
    labels = idx.read(folder / f"{part}-labels-idx1-ubyte.gz")
    if images.shape[1:] != (SIDE, SIDE) or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
        raise DataError(
            f"{folder}: expected images [n, {SIDE}, {SIDE}] and labels [n] from 0 to 9, "
            f"found {list(images.shape)} and {list(labels.shape)}"
        )
    return torch.from_numpy(images / np.float32(255)).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))
