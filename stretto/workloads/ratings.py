"""Files of ratings, as MovieLens publishes them: a strict and bounded reader.

    line = user TAB item TAB rating TAB time      numbers; users and items are whole, and need not be without gaps

Source: F. M. Harper, J. A. Konstan, "The MovieLens datasets: history and context", ACM TiiS 5 (4), 2015; the file
``u.data`` of ``ml-100k``, whose README describes it. It may not be passed on, so it is not fetched.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stretto.errors import DataError

MOST_BYTES = 1 << 28
LARGEST = 2**63 - 1
MOST_STARS = 1e6


@dataclass(frozen=True, slots=True)
class Ratings:
    """``pairs``, int64 ``[n, 2]``: rows of users and of items, numbered from 0 among those that occur, in their order;
    ``stars``, float32 ``[n]``: what the one gave the other; and how many users and items there are."""

    pairs: Tensor
    stars: Tensor
    users: int
    items: int


def read(path: Path, most: int = MOST_BYTES) -> Ratings:
    """The ratings in a file of at most ``most`` bytes.

    Raises:
        DataError: it cannot be read, is too large, holds nothing, or a line is damaged; says which and why.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from e
    if len(content) > most:
        raise DataError(f"{path} holds more than {most} bytes; give a part of it")
    return parse(content, str(path))


def parse(content: bytes, name: str) -> Ratings:
    """The ratings in ``content``; ``name`` is used in errors, which are those of :func:`read`.

    >>> parse(b"7\\t40\\t5\\t881250949\\n3\\t40\\t2.5\\t881250950\\n", "u.data")
    Ratings(pairs=tensor([[1, 0],
            [0, 0]]), stars=tensor([5.0000, 2.5000]), users=2, items=1)
    """
    users, items, stars = array("q"), array("q"), array("d")
    for number, line in enumerate(content.splitlines(), 1):
        user, item, rating = _line(line, f"{name}, line {number}")
        users.append(user)
        items.append(item)
        stars.append(rating)
    if not stars:
        raise DataError(f"{name} holds no ratings")
    known, rows = zip(*(np.unique(np.array(x), return_inverse=True) for x in (users, items)), strict=True)
    pairs = torch.from_numpy(np.stack(rows, axis=1).astype(np.int64))
    return Ratings(pairs, torch.tensor(stars, dtype=torch.float32), len(known[0]), len(known[1]))


def _line(line: bytes, where: str) -> tuple[int, int, float]:
    fields = line.split(b"\t")
    if len(fields) != 4:
        raise DataError(f"{where}: expected user, item, rating and time between tabs, found {_shown(line)}")
    user, item, rating, at = fields
    for what, text in (("user", user), ("item", item), ("time", at)):
        if not text.isdigit() or int(text) > LARGEST:
            raise DataError(f"{where}: expected a whole number for the {what}, found {_shown(text)}")
    try:
        stars = float(rating)
    except ValueError:
        stars = float("nan")
    if not abs(stars) <= MOST_STARS:
        raise DataError(f"{where}: expected a number for the rating, found {_shown(rating)}")
    return int(user), int(item), stars


def _shown(text: bytes) -> str:
    """At most 40 characters of it."""
    return repr(text[:40].decode("ascii", "backslashreplace")) + ("…" if len(text) > 40 else "")
