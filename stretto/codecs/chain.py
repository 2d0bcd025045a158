"""Two codecs after each other: the first selects some of the elements, the second writes their values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from stretto.codecs.base import Base
from stretto.codecs.randomk import RandomK
from stretto.codecs.sparse import Selecting, norm
from stretto.core import Codec, Like, Payload, State, mixed
from stretto.errors import UsageError
from stretto.text import coerce, named, sums


@sums("codec")
@named("chain", kind="codec")
@dataclass(frozen=True)
class Chain(Base):
    """What ``sparse`` selects, as ``values`` writes it: ``topk(0.01)+int4``.

    The payload is that of ``values`` for the selected elements, as a vector of their own, and then where they belong.

    Basu, Data, Karakus, Diggavi: Qsparse-local-SGD, 2019, section 2.

    Raises:
        UsageError: ``sparse`` selects nothing; or ``values`` is not read by itself, or holds something back.
    """

    paper: ClassVar[str] = "Basu et al. 2019, Qsparse-local-SGD (arXiv 1906.02367), section 2"
    when: ClassVar[str] = "the network is very slow, with feedback around it"

    sparse: Any = "topk(0.01)"
    values: Any = "int8"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparse", coerce(self.sparse, "codec"))
        object.__setattr__(self, "values", coerce(self.values, "codec"))
        _check(self.sparse, self.values)

    def __str__(self) -> str:
        return f"{self.sparse}+{self.values}"

    @property
    def contracts(self) -> bool:
        return bool(self.sparse.contracts and self.values.contracts)

    @property
    def exact(self) -> bool:
        return bool(self.sparse.exact and self.values.exact)

    def init(self, like: Like) -> State:
        return {"sparse": self.sparse.init(like), "values": self.values.init(self._selected(like))}

    def encode(self, x: Tensor, like: Like, state: State) -> tuple[Payload, State]:
        selected = self.sparse.select(x, like, state["sparse"])
        inner = self._selected(like, selected.count)
        (written,), values = self.values.encode(selected.values, inner, state["values"])
        return (torch.cat((written, selected.where)),), {"sparse": selected.state, "values": values}

    def decode(self, payload: Payload, like: Like, state: State) -> tuple[Tensor, State]:
        read, where, state = self._read(payload, like, state)
        return self.sparse.place(read, where, like, state["sparse"]), state

    def take(self, y: Tensor, payload: Payload, like: Like, state: State) -> None:
        read, where, state = self._read(payload, like, state)
        self.sparse.subtract(read, where, y, like, state["sparse"])

    def size(self, like: Like) -> int:
        return int(self.sparse.room(like) + self.values.size(self._selected(like)))

    def bound(self, x: Tensor) -> float:
        """What is not selected, and what is lost of what is.

        Where the draw or the parameters in ``x`` decide what that is: of a contraction no more than there was, and of
        any other codec at each element no more than the largest.
        """
        if self.sparse.certain:
            values = self.sparse.select(x, Like.of(x), None).values
            return math.hypot(self.sparse.bound(x), self.values.bound(values))
        if self.contracts:
            return norm(x)
        largest = float(x.abs().max()) if x.numel() else 0.0
        return math.hypot(self.sparse.bound(x), math.sqrt(self.sparse.slots(Like.of(x))) * largest)

    def _read(self, payload: Payload, like: Like, state: State) -> tuple[Tensor, Tensor, State]:
        split = self.sparse.split(payload, like)
        read, values = self.values.decode((split.written,), self._selected(like, split.count), state["values"])
        return read, split.where, {**state, "values": values}

    def _selected(self, like: Like, count: int | None = None) -> Like:
        """What ``values`` is given: nameless, and drawing otherwise than ``sparse``."""
        n = self.sparse.slots(like) if count is None else count
        return Like((n,), self.sparse.dtype(like), seed=mixed(like.seed, 1), own=mixed(like.own, 1))


def _check(sparse: Any, values: Codec) -> None:
    text = f"{sparse}+{values}"
    if not isinstance(sparse, Selecting):
        raise UsageError(
            f"{text}: the first part of a chain, {sparse}, selects nothing for the second to write; it may be topk, "
            "randomk, threshold or dct_topk, and what holds for both goes around them, as in feedback(topk(0.01)+int4)"
        )
    if isinstance(sparse, RandomK) and sparse.scaled:
        raise UsageError(
            f"{text} would be scaled at each of its two encodings: write {replace(sparse, scaled=False)}+{values}, "
            "with feedback around it"
        )
    if isinstance(values, Chain) or values.summable:
        raise UsageError(
            f"{text}: the last part of a chain, {values}, must be one codec that is read by itself, as int8"
        )
    like = Like((1,), torch.float32)
    if values.kept(like, values.init(like)) is not None:
        raise UsageError(f"{text}: what {values} holds back is of other elements each time; put it around the chain")
