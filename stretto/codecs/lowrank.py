"""A matrix as the product of two thin ones: PowerSGD, one step of power iteration a round.

Theory of operation (Vogels, Karimireddy, Jaggi: PowerSGD, NeurIPS 2019, algorithm 1). Each parameter with two or more
dimensions is a matrix M of n rows and m columns: its first dimension, and the rest. All agents hold the same m x r
basis Q. The first pass averages P = M Q. Each agent makes the columns of that mean orthonormal, and the second pass
averages Mᵀ P. Then the mean of all M is about P (mean of Mᵀ P)ᵀ: the projection of the mean on r directions, which
one step of power iteration has turned towards its largest. The second mean is the next round's basis, so that the
iteration goes on from round to round. All else travels whole, in the first pass: vectors, and matrices so small that
their factors are no shorter.

All agents shall decode the same bits, also on unlike processors: what each does by itself with a mean is in
:mod:`stretto.codecs.portable`, and plain matrix products only make what is averaged. Thin factors lie as rows: that
way such a product reads M once, at the speed of memory.

P and Mᵀ P are sums of many elements, which may overflow where the elements do not: basis and P are scaled by
2^-16 before, which loses nothing but bits of numbers that are nearly denormal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
from torch import Tensor

from stretto.codecs.base import Base, NonFiniteRule, floats, not_finite
from stretto.codecs.factors import Layout, Matrix, explained, layout_of
from stretto.codecs.portable import multiply, orthonormalise
from stretto.core import Like, Payload, State, mixed
from stretto.errors import DamagedPayload, UsageError
from stretto.text import named

SCALE: Final = 2.0**-16


@named("lowrank", kind="codec")
@dataclass(frozen=True)
class LowRank(Base):
    """Each matrix as a product of ``rank`` columns and ``rank`` rows, averaged one after the other; vectors whole.

    A tensor's parameters (``like.pieces``) tell its matrices; :meth:`explain` says what becomes of each. The basis, of
    ``rank`` times the columns of all matrices, is remembered from round to round; a tensor must not change between
    ``encode`` and ``refine``. ``nonfinite="pass"``: NaN and infinity make NaN of their matrix, and the basis stays.

    Vogels, Karimireddy, Jaggi: PowerSGD, 2019, algorithm 1. Use it with feedback (algorithm 2).

    Raises:
        UsageError: ``rank`` is not at least 1.
    """

    paper: ClassVar[str] = "Vogels et al. 2019"
    when: ClassVar[str] = "matrices on a slow network, among many agents: with feedback"

    rank: int = 4
    nonfinite: NonFiniteRule = field(default="raise", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise UsageError(f"lowrank({self.rank}): the rank must be a whole number of at least 1")
        if self.nonfinite not in ("raise", "pass"):
            raise UsageError(f"lowrank(nonfinite={self.nonfinite!r}): write 'raise' or 'pass'")

    @property
    def summable(self) -> bool:
        return True

    @property
    def passes(self) -> int:
        return 2

    def explain(self, like: Like) -> list[str]:
        """For each parameter a line that says how it travels, and why."""
        return [explained(piece, self.rank) for piece in like.pieces]

    def init(self, like: Like) -> State:
        """``basis``: all Q, as rows of unit length times 2^-16, the same at all agents."""
        generator = torch.Generator().manual_seed(mixed(like.seed, self.rank))
        layout = layout_of(like.pieces, self.rank)
        return {"basis": self._basis(torch.randn(layout.rights, generator=generator), layout)}

    def encode(self, x: Tensor, like: Like, state: State) -> tuple[Payload, State]:
        flat, layout = floats(x), layout_of(like.pieces, self.rank)
        out = torch.empty(layout.lefts + layout.wholes)
        for m in layout.matrices:
            torch.mm(self._right(state["basis"], m), _matrix(flat, m).t(), out=self._left(out, m))
        _gather(flat, layout, out)
        if self.nonfinite == "raise" and not out.isfinite().all():
            raise not_finite(flat, like, self)
        return (out,), {**state, "tensor": flat}

    def refine(self, mean: Payload, like: Like, state: State) -> tuple[Payload, State]:
        """Of the mean of all P, the transposed products with it.

        Raises:
            DamagedPayload: it is no such mean.
        """
        layout = layout_of(like.pieces, self.rank)
        agreed = self._one(mean, layout.lefts + layout.wholes).clone()
        out = torch.empty(layout.rights)
        for m in layout.matrices:
            left = self._left(agreed, m)
            orthonormalise(left)
            torch.mm(left * SCALE, _matrix(state["tensor"], m), out=self._right(out, m))
        return (out,), {"basis": state["basis"], "agreed": agreed}

    def decode(self, payload: Payload, like: Like, state: State) -> tuple[Tensor, State]:
        layout, agreed = layout_of(like.pieces, self.rank), state["agreed"]
        rights = self._one(payload, layout.rights)
        out = torch.empty(like.numel, dtype=like.dtype)
        for m in layout.matrices:
            multiply(self._left(agreed, m), self._right(rights, m), 1 / SCALE, _matrix(out, m))
        _scatter(agreed, layout, out)
        return out.view(like.shape), {"basis": self._basis(rights, layout, state["basis"])}

    def take(self, y: Tensor, payload: Payload, like: Like, state: State) -> None:
        """``y`` (float32, flat) loses what this agent's own second payload has of it; what travels whole, it has."""
        layout = layout_of(like.pieces, self.rank)
        for m in layout.matrices:
            left = self._left(state["agreed"], m) / SCALE
            _matrix(y, m).addmm_(left.t(), self._right(payload[0], m), alpha=-1)
        for start, stop in layout.whole:
            y[start:stop].zero_()

    def size(self, like: Like) -> int:
        layout = layout_of(like.pieces, self.rank)
        return 4 * (layout.lefts + layout.rights + layout.wholes)

    def bound(self, x: Tensor) -> float:
        """A projection loses no more than there was, and of vectors nothing."""
        return float(torch.linalg.vector_norm(x, dtype=torch.float64))

    def _basis(self, rights: Tensor, layout: Layout, before: Tensor | None = None) -> Tensor:
        """All Q at unit length, or what was before where one cannot be."""
        out = torch.zeros(layout.rights) if before is None else before.clone()
        for m in layout.matrices:
            right = self._right(rights, m).double()
            unit = right / torch.linalg.vector_norm(right, dim=1, keepdim=True) * SCALE
            self._right(out, m).copy_(torch.where(unit.isfinite().all(1, keepdim=True), unit, self._right(out, m)))
        return out

    def _left(self, flat: Tensor, m: Matrix) -> Tensor:
        return flat[m.left : m.left + self.rank * m.rows].view(self.rank, m.rows)

    def _right(self, flat: Tensor, m: Matrix) -> Tensor:
        return flat[m.right : m.right + self.rank * m.columns].view(self.rank, m.columns)

    def _one(self, payload: Payload, numel: int) -> Tensor:
        if len(payload) != 1 or payload[0].dtype != torch.float32 or payload[0].shape != (numel,):
            found = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in payload) or "nothing"
            raise DamagedPayload(
                f"{self} was given {found} instead of {numel} numbers (float32): do all agents run the same version "
                "with the same strategy?"
            )
        return payload[0]


def _matrix(flat: Tensor, m: Matrix) -> Tensor:
    return flat[m.start : m.start + m.rows * m.columns].view(m.rows, m.columns)


def _whole(flat: Tensor, layout: Layout, agreed: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each range of the tensor that travels whole, and its place behind all P."""
    at = layout.lefts
    for start, stop in layout.whole:
        yield flat[start:stop], agreed[at : at + stop - start]
        at += stop - start


def _gather(flat: Tensor, layout: Layout, out: Tensor) -> None:
    for here, there in _whole(flat, layout, out):
        there.copy_(here)


def _scatter(agreed: Tensor, layout: Layout, out: Tensor) -> None:
    for here, there in _whole(out, layout, agreed):
        here.copy_(there)
