"""``recommender``: what users would give items they have not rated yet; a few seconds to learn.

Without a file the ratings are made: users and items have biases and factors that nobody is told, and a rating is what
these come to, and noise. So it is known what the truth itself would miss on the ratings held out, the *floor*, below
which nothing can be learned. With ``n`` ratings and ``p`` numbers to learn, least squares are above it by
``sqrt(1 + p/n)``, 1.2 % here.

With ``--data DIR`` they are MovieLens's ``u.data`` (:mod:`stretto.workloads.ratings`), of which nobody knows the floor.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from stretto.errors import DataError
from stretto.workloads import ratings
from stretto.workloads.ratings import Ratings
from stretto.workloads.workload import Data

FILE = "u.data"
USERS = 1000
ITEMS = 1000
RANK = 3
RATINGS = 400_000
NOISE = 0.5
"""Standard deviation of what is in a rating and in nothing else."""

HELD_OUT = 0.1
TRAINING = 360_000
SPLIT_SEED = 2009

_MEAN, _BIAS, _FIT = 3.5, 0.4, 0.7
"""The mean rating; the standard deviations of biases, and of how users and items fit."""


def find(directory: Path | None) -> Path | None:
    """The file of ratings: ``directory`` itself, or in it, or in its folder ``recommender`` or ``ml-100k``.

    None without a directory: ratings are made.

    Raises:
        DataError: it is not there.
    """
    if directory is None or directory.is_file():
        return directory
    for folder in (directory / "recommender", directory / "ml-100k", directory):
        if (folder / FILE).is_file():
            return folder / FILE
    raise DataError(f"recommender: {directory} has no {FILE}; name a directory that has it, or none to make ratings up")


def load(directory: Path | None = None) -> Data:
    """Nine tenths of the ratings to train and one to test, always the same; of a file, or made up.

    Raises:
        DataError: the file is not there, or damaged; says at which line.
    """
    path = find(directory)
    if path is None:
        made, truth = plant()
        return split(made, truth)
    return split(ratings.read(path))


def plant(
    users: int = USERS,
    items: int = ITEMS,
    rank: int = RANK,
    count: int = RATINGS,
    noise: float = NOISE,
    seed: int = 0,
) -> tuple[Ratings, Tensor]:
    """``count`` ratings of different pairs, and what they would be without ``noise``, float32 ``[count]``."""
    draw = torch.Generator().manual_seed(seed)
    biases = [_BIAS * torch.randn(n, generator=draw) for n in (users, items)]
    factors = [torch.randn(n, rank, generator=draw) for n in (users, items)]
    cells = torch.randperm(users * items, generator=draw)[:count]
    user, item = cells // items, cells % items
    fit = (factors[0][user] * factors[1][item]).sum(1) * _FIT / rank**0.5
    truth = _MEAN + biases[0][user] + biases[1][item] + fit
    stars = truth + noise * torch.randn(count, generator=draw)
    return Ratings(torch.stack((user, item), dim=1), stars, users, items), truth


def split(found: Ratings, truth: Tensor | None = None) -> Data:
    """What is held out is drawn at random. With the ``truth`` the floor is what it misses of that."""
    order = torch.randperm(len(found.stars), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, train = order.tensor_split([int(HELD_OUT * len(order))])
    if not len(test):
        raise DataError(f"{len(found.stars)} ratings are too few to hold some out; give {round(1 / HELD_OUT)} or more")
    return Data(
        (found.pairs[train], found.stars[train]),
        (found.pairs[test], found.stars[test]),
        facts={"users": found.users, "items": found.items, "mean": float(found.stars[train].mean())},
        floor=None if truth is None else float((truth - found.stars)[test].square().mean().sqrt()),
    )


def close(ratings: Tensor, wanted: Tensor) -> Tensor:
    """Which ``ratings`` are at most half a star off."""
    return (ratings - wanted).abs() <= 0.5
