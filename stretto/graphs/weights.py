"""A graph by its matrix, as somebody wrote it down."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar, TypeAlias

from torch import Tensor

from stretto.errors import UsageError
from stretto.graphs.peers import Row, matrix, reached
from stretto.graphs.ring import Ring
from stretto.text import named

Matrix: TypeAlias = tuple[tuple[Fraction, ...], ...]
_EXAMPLE = "weights('1/2 1/4 1/4; 1/4 1/2 1/4; 1/4 1/4 1/2')"
_WEIGHT = re.compile(r"\d{1,9}/0*[1-9]\d{0,8}|\d{1,9}(\.\d{1,18})?")


@named("weights", kind="graph")
@dataclass(frozen=True)
class Weights:
    """Row by row, by which weight each agent hears each: ``weights('1/2 1/2 0; 1/2 1/4 1/4; 0 1/4 3/4')``.

    Columns must sum to one, so that nothing is lost or made; exactly so, which is why fractions are read. Where rows
    do, too, it is for gossip; else for push-sum only. Every agent must be reached from every other, and keep a part.

    It is for as many agents as it has rows. While there are others (one has died, or has come) it is a ring.

    Raises:
        UsageError: it cannot be read, is not square, does not connect, or does not sum to one.
    """

    rows: str
    kind: ClassVar[str] = "graph"

    def __post_init__(self) -> None:
        table = _table(self.rows)
        size = len(table)
        for rank, column in enumerate(zip(*table, strict=True)):
            if sum(column) != 1:
                raise UsageError(
                    f"{self}: rows give column {rank} a sum of {sum(column)}; what agent {rank} gives away must sum to "
                    f"1, as in {_EXAMPLE}"
                )
            if not column[rank]:
                raise UsageError(
                    f"{self}: rows let agent {rank} keep nothing; a diagonal above 0 does, as in {_EXAMPLE}"
                )
        hears = [[j for j, weight in enumerate(row) if weight] for row in table]
        tells = [[i for i, weight in enumerate(column) if weight] for column in zip(*table, strict=True)]
        for edges, what in ((tells, "is not reached from"), (hears, "has no way to")):
            apart = set(range(size)) - reached(0, edges)
            if apart:
                raise UsageError(f"{self}: rows do not connect: agent {min(apart)} {what} agent 0; see {_EXAMPLE}")

    @property
    def balanced(self) -> bool:
        return all(sum(row) == 1 for row in _table(self.rows))

    def row(self, rank: int, size: int, clock: int, seed: int = 0) -> Row:
        table = _table(self.rows)
        if size != len(table):
            return Ring().row(rank, size, clock, seed)
        hears = tuple((j, float(weight)) for j, weight in enumerate(table[rank]) if weight and j != rank)
        tells = tuple(i for i in range(size) if table[i][rank] and i != rank)
        return Row(float(table[rank][rank]), hears, tells)

    def cycle(self, size: int) -> Tensor:
        return matrix(self, size)


@lru_cache(maxsize=64)
def _table(rows: str) -> Matrix:
    table = tuple(tuple(_read(weight, rows) for weight in row.split()) for row in rows.split(";"))
    if any(len(row) != len(table) for row in table):
        raise UsageError(
            f"weights({rows!r}): rows are {len(table)}, of {[len(r) for r in table]} weights; see {_EXAMPLE}"
        )
    return table


def _read(weight: str, rows: str) -> Fraction:
    if not _WEIGHT.fullmatch(weight):
        raise UsageError(f"weights({rows!r}): rows hold {weight!r}; a weight is like 0.25 or 1/4, and not below 0")
    return Fraction(weight)
