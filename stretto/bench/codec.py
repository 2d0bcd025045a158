"""``stretto bench codec``: what every codec costs, saves and loses, on one core.

The vector is one square matrix of float32 normal numbers. All codecs and a plain copy take turns in each round. GB/s
are of the input, in both directions. ``bound`` is the time in which memory alone could be read and written once, at the
copy's rate; what is not reached stands beside it. Bias is measured on a short vector: the mean of 1,000 draws less the
vector, in units of the vector; what is unbiased comes down to about the error divided by the root of 1,000.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import torch
from torch import Tensor

from stretto.bench.measure import Spread, spread
from stretto.bench.report import NOT_MEASURED, Section, number
from stretto.core import Codec, Like, Named, Payload, State
from stretto.text import parse

SIZES: Final = {"64 KB": 128, "1 MB": 512, "25 MB": 2560}
"""Sides of the square matrix."""
ROUNDS: Final = {"64 KB": 60, "1 MB": 30, "25 MB": 9}
DRAWS: Final = 1000
SHORT: Final = 32
"""Side of the matrix on which bias is measured."""
CODECS: Final = (
    "fp16",
    "bf16",
    "fp8",
    "fp8(format='e5m2')",
    "int8",
    "int8(stochastic=true)",
    "int4",
    "int4(stochastic=true)",
    "int2",
    "natural",
    "ternary",
    "sign",
    "topk(0.01)",
    "topk(0.01, sampled=true)",
    "threshold(2.5)",
    "randomk(0.01)",
    "lowrank(4)",
    "dct_topk(0.01)",
    "topk(0.01)+int4",
    "feedback(sign)",
    "feedback(topk(0.01))",
)
GOALS: Final[dict[str, tuple[float, float]]] = {
    "int8": (5, 10),
    "int4": (3, 6),
    "sign": (12, 8),
    "topk(0.01, sampled=true)": (2, 0),
    "topk(0.01)": (1.2, 0),
    "lowrank(4)": (1, 0),
}
"""GB/s of encoding and decoding 25 MB; 0 where none was set."""
OF_COPY: Final = {"bf16": 1.3, "fp16": 1.3}
"""Most times a copy of 25 MB, in both directions."""
FEEDBACK_MS: Final = 2.5
"""Most that feedback adds to encoding 25 MB."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One codec on one size. Times in ms; ``error`` and ``bias`` in units of the vector's norm."""

    codec: str
    size: str
    nbytes: int
    payload: int
    encode_ms: Spread
    decode_ms: Spread
    copy_ms: Spread
    error: float
    bias: float | None
    goal: str
    reached: bool | None


class _Contender:
    """A codec that encodes the same matrix again and again, remembering what it must."""

    def __init__(self, text: str, x: Tensor) -> None:
        self.text, self.x = text, x
        self.codec: Codec = parse(text, "codec")
        self.like = _like(x, own=1)
        self.state: State = self.codec.init(self.like)
        self.payload: Payload = ()
        self.found = x
        self.seconds: tuple[list[float], list[float]] = ([], [])

    def turn(self) -> None:
        begin = time.perf_counter()
        payload, state = _encoded(self.codec, self.x, self.like, self.state)
        middle = time.perf_counter()
        self.found, self.state = self.codec.decode(payload, self.like, state)
        end = time.perf_counter()
        self.payload = payload
        self.seconds[0].append(middle - begin)
        self.seconds[1].append(end - middle)


def run(command: str, say: Callable[[str], None]) -> Section:
    """Every codec on every size."""
    torch.set_num_threads(1)
    rows: list[Measured] = []
    for size, side in SIZES.items():
        rows += _measure(size, side)
        say(f"{size}: measured")
    about = (
        "One core. GB/s of the input; bound: the least time that memory takes to read the input and write the payload "
        "(or the other way), at the rate of the copy that took its turns beside. Error of one draw, and bias of "
        f"{DRAWS:,} draws, in units of the vector. Feedback encodes what it holds back too, and its error is of that."
    )
    headers = ("size", "codec", "bytes", "ratio", "encode, ms", "GB/s", "decode, ms", "GB/s", "bound, ms")
    return Section(
        title="Codecs",
        command=command,
        about=about,
        headers=(*headers, "error", "bias", "goal", "reached"),
        cells=tuple(_cells(row) for row in rows),
        data=rows,
    )


def _measure(size: str, side: int) -> list[Measured]:
    x = torch.randn(side, side, generator=torch.Generator().manual_seed(1)).reshape(-1)
    contenders = [_Contender(text, x) for text in CODECS]
    copies, room = [], torch.empty_like(x)
    for turn in range(ROUNDS[size] + 2):
        begin = time.perf_counter()
        room.copy_(x)
        copies.append(time.perf_counter() - begin)
        first = turn % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            contender.turn()
    by_text = {c.text: c for c in contenders}
    return [_row(c, by_text, size, copies[2:]) for c in contenders]


def _row(c: _Contender, others: dict[str, _Contender], size: str, copies: Sequence[float]) -> Measured:
    encode, decode = (spread(times[2:], 1e3) for times in c.seconds)
    copy = spread(copies, 1e3)
    goal, reached = ("", None) if size != "25 MB" else _judged(c, others, encode, decode, copy)
    return Measured(
        codec=c.text,
        size=size,
        nbytes=c.x.nbytes,
        payload=c.codec.size(c.like) if c.codec.exact else sum(t.nbytes for t in c.payload),
        encode_ms=encode,
        decode_ms=decode,
        copy_ms=copy,
        error=float((c.found - c.x).norm() / c.x.norm()),
        bias=_bias(c.codec) if size == "64 KB" else None,
        goal=goal,
        reached=reached,
    )


def _judged(
    c: _Contender, others: dict[str, _Contender], encode: Spread, decode: Spread, copy: Spread
) -> tuple[str, bool | None]:
    gb = c.x.nbytes / 1e6
    if c.text in GOALS:
        to, back = GOALS[c.text]
        words = f"encode {to:g} GB/s" + (f", decode {back:g}" if back else "")
        return words, gb / encode.median >= to and gb / decode.median >= back
    if c.text in OF_COPY:
        most = OF_COPY[c.text]
        return f"{most:g} copies ({copy.median:.2f} ms)", max(encode.median, decode.median) <= most * copy.median
    inner = others.get(c.text.removeprefix("feedback(")[:-1]) if c.text.startswith("feedback(") else None
    if inner is not None:
        added = [1e3 * (a - b) for a, b in zip(c.seconds[0][2:], inner.seconds[0][2:], strict=True)]
        return f"adds {FEEDBACK_MS} ms (adds {spread(added).median:.1f})", spread(added).median <= FEEDBACK_MS
    return "", None


def _bias(codec: Codec) -> float:
    x = torch.randn(SHORT * SHORT, generator=torch.Generator().manual_seed(2))
    like = _like(x, own=3)
    state, total = codec.init(like), torch.zeros(x.shape, dtype=torch.float64)
    for _ in range(DRAWS):
        payload, state = _encoded(codec, x, like, state)
        found, state = codec.decode(payload, like, state)
        total += found
    return float((total / DRAWS - x).norm() / x.norm())


def _encoded(codec: Codec, x: Tensor, like: Like, state: State) -> tuple[Payload, State]:
    payload, state = codec.encode(x, like, state)
    for _ in range(1, codec.passes):
        payload, state = codec.refine(payload, like, state)
    return payload, state


def _like(x: Tensor, own: int) -> Like:
    side = round(x.numel() ** 0.5)
    return Like(tuple(x.shape), x.dtype, (Named("weight", (side, side)),), seed=1, own=own)


def _cells(row: Measured) -> tuple[str, ...]:
    mb = row.nbytes / 1e6
    bound = row.copy_ms.median * (row.nbytes + row.payload) / (2 * row.nbytes)
    return (
        row.size,
        f"`{row.codec}`",
        f"{row.payload:,}",
        number(row.nbytes / max(1, row.payload)),
        number(row.encode_ms.median),
        number(mb / row.encode_ms.median),
        number(row.decode_ms.median),
        number(mb / row.decode_ms.median),
        number(bound),
        f"{row.error:.4f}",
        NOT_MEASURED if row.bias is None else f"{row.bias:.4f}",
        row.goal,
        {True: "yes", False: "no", None: ""}[row.reached],
    )
