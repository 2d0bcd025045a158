"""Which parameters in a flat tensor are worth two thin factors, and where each and its factors lie."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from stretto.core import Named


class Matrix(NamedTuple):
    """One parameter seen as a matrix, and where it begins: in the tensor, among the P and among the Q."""

    name: str
    start: int
    rows: int
    columns: int
    left: int
    right: int


class Layout(NamedTuple):
    """What lies where: the matrices, the ranges that travel whole, and the lengths of all P, all Q and these."""

    matrices: tuple[Matrix, ...]
    whole: tuple[tuple[int, int], ...]
    lefts: int
    rights: int
    wholes: int


@lru_cache(maxsize=256)
def layout_of(pieces: tuple[Named, ...], rank: int) -> Layout:
    matrices: list[Matrix] = []
    whole: list[tuple[int, int]] = []
    at = lefts = rights = 0
    for piece in pieces:
        rows, columns = _seen(piece)
        if rank * (rows + columns) < piece.numel:
            matrices.append(Matrix(piece.name, at, rows, columns, lefts, rights))
            lefts, rights = lefts + rank * rows, rights + rank * columns
        elif piece.numel:
            start = whole.pop()[0] if whole and whole[-1][1] == at else at
            whole.append((start, at + piece.numel))
        at += piece.numel
    return Layout(tuple(matrices), tuple(whole), lefts, rights, sum(stop - start for start, stop in whole))


def _seen(piece: Named) -> tuple[int, int]:
    rows = piece.shape[0] if piece.shape else 1
    return rows, piece.numel // rows if rows else 0


def explained(piece: Named, rank: int) -> str:
    rows, columns = _seen(piece)
    name = piece.name or "the tensor"
    if len(piece.shape) < 2:
        return f"{name} travels whole: it is a vector of {piece.numel}"
    factors = rank * (rows + columns)
    if factors >= piece.numel:
        return f"{name} travels whole: {rows} x {columns} are no more than two factors of rank {rank}, {factors}"
    return f"{name} travels as rank {rank}: {factors} numbers instead of {rows} x {columns} = {piece.numel}"
