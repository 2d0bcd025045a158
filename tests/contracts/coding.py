"""Rounds of a codec without a network, tensors of every kind, and how much of them is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from stretto.core import Codec, Like, Named, Payload

CHUNKED = (65_536, 65_537, 131_071)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("normal", "zero", "denormal", "huge", "constant", "wide", "sparse")


@dataclass(frozen=True)
class Round:
    """What each agent sent, pass by pass, what each decoded, and what each remembers."""

    sent: list[list[Payload]]
    decoded: list[Tensor]
    states: list[Any]


def exchange(codec: Codec, xs: Sequence[Tensor], likes: Sequence[Like], states: Sequence[Any]) -> Round:
    """One round of agents, each with its tensor: they decode the mean, or, if it cannot be added, their own payload."""
    states, sent, mean = list(states), [[] for _ in xs], ()
    for number in range(codec.passes):
        payloads = []
        for i, x in enumerate(xs):
            made = codec.refine(mean, likes[i], states[i]) if number else codec.encode(x, likes[i], states[i])
            payload, states[i] = made
            payloads.append(payload)
            sent[i].append(copied(payload))
        if codec.summable:
            mean = tuple(torch.stack(tensors).mean(0) for tensors in zip(*payloads, strict=True))
    decoded = []
    for i, like in enumerate(likes):
        out, states[i] = codec.decode(mean if codec.summable else sent[i][-1], like, states[i])
        decoded.append(out)
    return Round(sent, decoded, states)


def alone(codec: Codec, x: Tensor, like: Like, state: Any = None) -> Round:
    return exchange(codec, [x], [like], [codec.init(like) if state is None else state])


def copied(tree: Any) -> Any:
    """With tensors of its own."""
    match tree:
        case Tensor():
            return tree.clone()
        case dict():
            return {key: copied(value) for key, value in tree.items()}
        case list() | tuple():
            return type(tree)(copied(value) for value in tree)
        case _:
            return tree


def same(one: Any, other: Any) -> bool:
    """To the bit; NaN is the same as NaN."""
    match one, other:
        case Tensor(), Tensor():
            return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(bits(one), bits(other))
        case dict(), dict():
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        case (list(), list()) | (tuple(), tuple()):
            return len(one) == len(other) and all(map(same, one, other))
        case _:
            return type(one) is type(other) and one == other


def bits(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.double()))


def rounding(x: Tensor) -> float:
    """What the arithmetic itself may lose: of float32 some last places and denormal numbers, of others a last place."""
    kind, numel = torch.finfo(x.dtype), max(1, x.numel())
    coarse = 0.0 if x.dtype in (torch.float32, torch.float64) else kind.eps
    smallest = max(torch.finfo(torch.float32).tiny, kind.tiny * kind.eps)
    return norm(x) * (coarse + 1e-5) + math.sqrt(numel) * smallest


BUCKET = (
    Named("embed.weight", (40, 8), "embedding"),
    Named("body.weight", (24, 32)),
    Named("body.bias", (24,), "bias"),
    Named("body.scale", (24,), "norm"),
    Named("conv.weight", (8, 3, 3, 3)),
)


def bucket(dtype: torch.dtype = torch.float32, *, seed: int = 0, own: int = 0) -> Like:
    return Like((sum(piece.numel for piece in BUCKET),), dtype, BUCKET, seed, own)


def filled(shape: tuple[int, ...], kind: str, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    limits = torch.finfo(dtype)
    match kind:
        case "zero":
            x = torch.zeros(shape, dtype=torch.float64)
        case "denormal":
            x = normal.clamp(-3, 3) * limits.tiny / 4
        case "huge":
            x = normal.sign() * limits.max * torch.rand(shape, generator=generator, dtype=torch.float64)
        case "constant":
            x = torch.full(shape, 0.7, dtype=torch.float64)
        case "wide":
            x = normal * torch.exp(normal.flip(0) * 3 if shape else normal)
        case "sparse":
            x = normal.where(normal.abs() > 2, 0.0)
        case _:
            x = normal
    return x.clamp(limits.min, limits.max).to(dtype)


def strided(x: Tensor) -> Tensor:
    """The same values, not contiguous."""
    return torch.stack((x, torch.full_like(x, math.nan)), -1)[..., 0]


@dataclass(frozen=True)
class Case:
    """A tensor, and what it is like."""

    x: Tensor
    like: Like

    def __repr__(self) -> str:
        return f"<{self.x.dtype} {tuple(self.x.shape)}, strides {self.x.stride()}, {len(self.like.pieces)} pieces>"


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    small = st.lists(st.integers(0, 19), max_size=3).map(tuple)
    named = st.sampled_from([(), (0,), (1,), (7,), (1, 1), (257,), (63, 65), (3, 0, 2)])
    return st.one_of(small, named, st.sampled_from(CHUNKED).map(lambda n: (n,)))


@st.composite
def cases(draw: st.DrawFn, *, rounds: bool = False) -> Case:
    """``rounds``: it may be exchanged four times, and what is held back be added to it."""
    dtype, kind = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(KINDS))
    seed, own = draw(st.integers(0, 99)), draw(st.integers(0, 99))
    pieces = draw(st.booleans())
    like = bucket(dtype, seed=seed, own=own) if pieces else Like(draw(shapes()), dtype, seed=seed, own=own)
    x = filled(like.shape, kind, dtype, seed)
    x = x / 8 if kind == "huge" and rounds else x
    return Case(strided(x) if draw(st.booleans()) else x, like)


def another(like: Like, own: int) -> Like:
    """The same tensor at another agent."""
    return replace(like, own=own)
