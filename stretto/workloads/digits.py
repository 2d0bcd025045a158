"""``digits``: 1,797 handwritten digits of 8 x 8 pixels, which ship with scikit-learn; a few seconds to learn.

Source: E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI machine learning repository, 1998.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from stretto.errors import UsageError
from stretto.workloads.workload import Data

SIDE = 8
TRAINING = 1437
SPLIT_SEED = 1797


def find(directory: Path | None) -> None:
    """Nothing is read from ``directory``; raises UsageError unless scikit-learn and its digits are installed."""
    _file()


def load(directory: Path | None = None) -> Data:
    """1,437 images to train and 360 to test, always the same; raises what :func:`find` does."""
    table = np.loadtxt(_file(), delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :-1] / 16).reshape(-1, 1, SIDE, SIDE)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, test = order[:TRAINING], order[TRAINING:]
    return Data((images[train], labels[train]), (images[test], labels[test]))


def _file() -> Path:
    """Where scikit-learn keeps them. To import it would take every agent a second."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return path
    raise UsageError("digits come with scikit-learn, which is not installed: pip install 'stretto[digits]'")
