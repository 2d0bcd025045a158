"""Floats of two bytes: each element rounded to the nearest.

The check for NaN and infinity reads what was written, half as many bytes, while it is in cache. Only if it finds any is
the input read again: to see whether they were there, or are finite numbers beyond the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.base import Packed, aligned
from stretto.errors import DamagedPayload
from stretto.text import named

CHUNK: Final = 1 << 18
"""Elements that are cast and then checked: what was written stays in cache between."""

MOST: Final = torch.finfo(torch.float16).max


@named("bf16", kind="codec")
@dataclass(frozen=True)
class Bf16(Packed):
    """The exponent of a float32 and 7 bits of mantissa, two bytes.

    Any shape and floating dtype; ``size`` is exactly two bytes an element. Beyond the largest number, 3.39e38, there is
    only that.
    """

    paper: ClassVar[str] = "Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training (arXiv 1905.12322)"
    when: ClassVar[str] = "half of the bytes at next to no cost"

    def nbytes(self, n: int) -> int:
        return 2 * n

    def pack(self, x: Tensor, out: Tensor, seed: int) -> bool:
        halves = out.view(torch.bfloat16)
        return _cast(x, halves) or _cast_again(x, halves, 0)

    def unpack(self, raw: Tensor, out: Tensor) -> None:
        _read(aligned(raw, torch.bfloat16), out, self)

    def bound(self, x: Tensor) -> float:
        return float(x.double().norm()) * 2.0**-8 + math.sqrt(x.numel()) * 2.0**-134


@named("fp16", kind="codec")
@dataclass(frozen=True)
class Fp16(Packed):
    """5 bits of exponent and 10 of mantissa, two bytes.

    Any shape and floating dtype. Two bytes at the end are the power of two that all is to be multiplied by: 0 but for a
    tensor with elements beyond 65,504, which is scaled so that its largest fits.
    """

    paper: ClassVar[str] = "Micikevicius et al. 2017, Mixed Precision Training (arXiv 1710.03740)"

    when: ClassVar[str] = "as bf16, and three bits more exact where elements are above 1e-4"

    def nbytes(self, n: int) -> int:
        return 2 * n + 2

    def pack(self, x: Tensor, out: Tensor, seed: int) -> bool:
        halves, power = out[:-2].view(torch.float16), out[-2:].view(torch.int16)
        power[0] = 0
        if _cast(x, halves):
            return True
        power[0] = _power(x)
        return _cast_again(x, halves, int(power))

    def unpack(self, raw: Tensor, out: Tensor) -> None:
        power = int(aligned(raw[-2:], torch.int16))
        if not 0 <= power <= 113:
            raise DamagedPayload(f"{self} was given {power} to decode as a power of two, which no agent sends")
        _read(aligned(raw[:-2], torch.float16), out, self)
        if power:
            most = torch.finfo(out.dtype).max
            out.mul_(2.0**power).clamp_(-most, most)

    def bound(self, x: Tensor) -> float:
        least = 2.0 ** (_power(x) - 25) if x.numel() else 0.0
        return float(x.double().norm()) * 2.0**-11 + math.sqrt(x.numel()) * least


def _cast(x: Tensor, halves: Tensor) -> bool:
    """Fill ``halves`` from ``x``. Is all of it finite?"""
    finite = True
    for part, target in _pairs(x, halves):
        finite = _finite(target.copy_(part)) and finite
    return finite


def _cast_again(x: Tensor, halves: Tensor, power: int) -> bool:
    """Fill ``halves`` from ``x`` · 2^-power: beyond its largest number is only that, and NaN is what is not finite.
    Was all of ``x``?"""
    finite, most = True, torch.finfo(halves.dtype).max
    for part, target in _pairs(x, halves):
        good = part.float().isfinite()
        target.copy_((part.float() * 2.0**-power).clamp_(-most, most).where(good, math.nan))
        finite = bool(good.all()) and finite
    return finite


def _power(x: Tensor) -> int:
    """The smallest, from 0, that makes all that is finite of ``x`` · 2^-power fit into a float16."""
    most = max(float(part.float().nan_to_num(0, 0, 0).abs().max()) for part in x.reshape(-1).split(CHUNK))
    return max(0, math.frexp(most / MOST * (1 - 2.0**-24))[1])


def _read(halves: Tensor, out: Tensor, codec: Packed) -> None:
    for part, target in _pairs(halves, out):
        if not codec.passing and not _finite(part):
            raise DamagedPayload(f"{codec} was given NaN or infinity to decode, which no agent sends")
        target.copy_(part.float().clamp_(-MOST, MOST) if out.dtype == torch.float16 != part.dtype else part)


def _finite(halves: Tensor) -> bool:
    """Of the bit patterns of either sign the finite ones are below that of infinity."""
    words = halves.view(torch.int16).numpy()
    infinity = int(torch.tensor(math.inf, dtype=halves.dtype).view(torch.int16))
    return bool(words.max() < infinity and words.view(np.uint16).max() < infinity + 0x8000)


def _pairs(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(CHUNK), y.split(CHUNK), strict=True)
