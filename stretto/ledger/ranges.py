"""Sets of positions as ascending [start, stop) ranges."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]

OPEN: Final = 1 << 62
"""Where a stream ends as long as nobody has seen its end."""


def count(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)


def cut(ranges: Ranges, first: int, last: int) -> Ranges:
    """The members number ``first`` up to ``last`` (exclusive), counted from the smallest.

    >>> cut(((0, 3), (10, 20)), 2, 5)
    ((2, 3), (10, 12))
    """
    pieces = []
    for start, stop in ranges:
        if last <= 0:
            break
        if first < stop - start:
            pieces.append((start + max(first, 0), min(stop, start + last)))
        first -= stop - start
        last -= stop - start
    return tuple((start, stop) for start, stop in pieces if start < stop)


def below(ranges: Ranges, end: int | None) -> Ranges:
    """The members smaller than ``end``; all without one."""
    if end is None:
        return ranges
    return tuple((start, min(stop, end)) for start, stop in ranges if start < end)


def without(ranges: Ranges, gone: Iterable[tuple[int, int]]) -> Ranges:
    """The members that are not in ``gone``, whose ranges ascend.

    Raises:
        ValueError: some of ``gone`` is not there.

    >>> without(((0, 3), (10, 20)), [(1, 2), (10, 12)])
    ((0, 1), (2, 3), (12, 20))
    """
    rest: list[tuple[int, int]] = []
    leaving = iter(gone)
    hole = next(leaving, None)
    for start, stop in ranges:
        while hole is not None and hole[0] < stop:
            if hole[0] < start or hole[1] > stop:
                break
            if start < hole[0]:
                rest.append((start, hole[0]))
            start = hole[1]  # noqa: PLW2901  what remains of this range
            hole = next(leaving, None)
        if start < stop:
            rest.append((start, stop))
    if hole is not None:
        raise ValueError(f"positions {hole[0]} to {hole[1] - 1} are not left")
    return tuple(rest)
