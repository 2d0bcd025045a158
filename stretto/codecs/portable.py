"""Linear algebra that gives the same bits on every processor.

Element-wise operations are rounded alike everywhere (IEEE 754); the order in which a matrix product or a sum adds, and
whether it rounds in between, is the processor's own. So products are rounded before they are added, one by one, and
sums are formed in fixed point, which no order changes.
"""

from __future__ import annotations

import math
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rows: TypeAlias = npt.NDArray[np.float32]

CHUNK: Final = 131_072
"""Elements that are multiplied at a time, so that they are still in the cache when the next product is added."""


def orthonormalise(left: Tensor) -> None:
    """Gram-Schmidt on the rows, in place; one that depends on those before it becomes some other direction.

    All of it is NaN where anything is not finite. There must not be more rows than columns.
    """
    rows: Rows = left.numpy()
    if not np.isfinite(rows).all():
        rows[:] = np.nan
        return
    for k, row in enumerate(rows):
        number = 0
        while not _freed(row, rows[:k]):
            row[:] = 0
            row[number] = 1
            number += 1


def _freed(row: Rows, others: Rows) -> bool:
    """``row``, at unit length, without what lies along ``others``; false if nearly nothing is left.

    Again until a pass takes little: what is left of a long vector is not orthogonal yet (Parlett: The symmetric
    eigenvalue problem, 1980, section 6.9).
    """
    left = float(_unit(row) > 0)
    while left > 1e-6:
        for other, along in zip(others, _dots(others, row), strict=True):
            row -= other * np.float32(along)
        length = _unit(row)
        left *= length
        if length > 0.7:
            return True
    return False


def _unit(row: Rows) -> float:
    """Make its length 1, and tell what it was."""
    largest = float(np.abs(row).max())
    if largest == 0:
        return 0.0
    row /= np.float32(largest)
    length = math.sqrt(_dots(row[None], row)[0])
    row /= np.float32(length)
    return largest * length


def _dots(rows: Rows, row: Rows) -> list[float]:
    """Products of elements of at most 1, added in steps of 2^-36: 2^27 of them at least fit."""
    steps = np.multiply(rows, row, dtype=np.float64) * 2.0**36
    return [step / 2.0**36 for step in np.rint(steps).astype(np.int64).sum(-1).tolist()]


def multiply(left: Tensor, right: Tensor, scale: float, out: Tensor) -> None:
    """``out`` = ``scale`` (at least 1) times leftᵀ right; beyond the dtype's largest number there is only that."""
    most = torch.finfo(out.dtype).max
    beyond = scale * len(left) * float(left.abs().max()) * float(right.abs().max()) >= most
    factors = left if beyond else left * scale
    step = max(1, CHUNK // out.shape[1])
    total, product = torch.empty(2, step, out.shape[1])
    for start in range(0, len(out), step):
        place, columns = out[start : start + step], factors[:, start : start + step, None]
        t, p = total[: len(place)], product[: len(place)]
        torch.mul(columns[0], right[0], out=t)
        for column, row in zip(columns[1:], right[1:], strict=True):
            t.add_(torch.mul(column, row, out=p))
        place.copy_(t.mul_(scale).clamp_(-most, most) if beyond else t)
