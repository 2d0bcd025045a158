"""A torus: a grid, as near to a square as it can be, whose edges meet."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from stretto.graphs.peers import Even
from stretto.text import named


@named("torus", kind="graph")
@dataclass(frozen=True)
class Torus(Even):
    """Each with those above, below, left and right of it, a fifth each.

    Rows are the largest divisor of n up to √n, so of a prime number of agents it is a ring. With more than two rows and
    columns the gap is 1 - (3 + 2 cos(2π/columns))/5. In two rows, above and below are one neighbour, and shares are
    quarters.
    """

    def tells(self, rank: int, size: int, clock: int, seed: int) -> tuple[int, ...]:
        rows, columns = grid(size)
        row, column = divmod(rank, columns)
        beside = {row * columns + (column + step) % columns for step in (-1, 1)}
        above = {(row + step) % rows * columns + column for step in (-1, 1)}
        return tuple(sorted((beside | above) - {rank}))


def grid(size: int) -> tuple[int, int]:
    """Rows and columns.

    >>> grid(12), grid(7)
    ((3, 4), (1, 7))
    """
    rows = next(rows for rows in range(isqrt(size), 0, -1) if size % rows == 0)
    return rows, size // rows
