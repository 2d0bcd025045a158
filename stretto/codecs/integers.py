"""Elements as whole multiples of a part of their block's scale: 8, 4 or 2 bits each.

An element x is written as floor(levels · x / scale + offset + u), where u is ½, to take the nearest multiple, or
uniform in [0, 1), to take the one above or below by chance, so that the mean over draws is x.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from stretto.codecs import planes
from stretto.codecs.blocks import Blocked, magnitudes, means
from stretto.codecs.chunks import Bytes, Scratch
from stretto.codecs.noise import Noise, still, uniform
from stretto.text import named


@dataclass(frozen=True)
class Rounded(Blocked):
    """``offset`` is what 0 is written as, before u."""

    offset: ClassVar[float]

    @property
    @abstractmethod
    def random(self) -> bool: ...

    @property
    def unbiased(self) -> bool:
        return self.random

    @property
    def contracts(self) -> bool:
        return not self.random

    @property
    def unit(self) -> float:
        return 2.0 ** (self.bits - 8) / self.levels

    def noise(self, n: int, seed: int) -> Noise:
        return uniform(self.offset, n, seed) if self.random else still(self.offset + 0.5, self.block)

    def measure(self, rows: Tensor, room: Scratch) -> None:
        magnitudes(rows, room)

    def write(self, rows: Tensor, noise: Tensor, codes: Bytes, room: Scratch) -> None:
        self.confine(torch.addcmul(noise, rows, room.over_scales(self.levels), out=room.rows))
        np.copyto(room.bytes, room.floats, casting="unsafe")
        planes.pack(room.bytes, self.bits, codes)

    def confine(self, shifted: Tensor) -> None:
        """Where the scale is not the largest magnitude: what lies beyond the codes, back into them."""

    def read(self, codes: Bytes, rows: Tensor, room: Scratch) -> None:
        tops = self.centred(planes.unpack(codes, self.bits, room.bytes))
        rows.copy_(torch.from_numpy(tops.view(np.int8)).view(rows.shape))

    def centred(self, tops: Bytes) -> Bytes:
        """Where 0 is between two codes: each in the middle of what it stands for."""
        return tops

    def lost(self, rows: Tensor, scales: Tensor) -> Tensor:
        step = scales / self.levels
        return rows.shape[1] * (step if self.random else step / 2).square()


@dataclass(frozen=True)
class Integer(Rounded):
    """``stochastic``: rounded up or down by chance."""

    stochastic: bool = field(default=False, kw_only=True)

    @property
    def random(self) -> bool:
        return self.stochastic


@named("int8", kind="codec")
@dataclass(frozen=True)
class Int8(Integer):
    """Whole numbers from −127 to 127, and a scale for each block.

    >>> import torch
    >>> from stretto.core import Like
    >>> x = torch.tensor([0.5, -1.0, 127.0])
    >>> codec, like = Int8(), Like.of(x)
    >>> payload, state = codec.encode(x, like, codec.init(like))
    >>> codec.decode(payload, like, state)[0]
    tensor([  1.,  -1., 127.])
    """

    paper: ClassVar[str] = "Dettmers et al. 2021, 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861)"
    when: ClassVar[str] = "a quarter of the bytes at no visible loss: try it first"
    bits: ClassVar[int] = 8
    levels: ClassVar[float] = 127
    offset: ClassVar[float] = 128


@named("int4", kind="codec")
@dataclass(frozen=True)
class Int4(Integer):
    """Whole numbers from −7 to 7, and a scale for each block."""

    paper: ClassVar[str] = "Alistarh et al. 2017, QSGD (arXiv 1610.02132), section 3"
    when: ClassVar[str] = "an eighth of the bytes: for pseudo-gradients, or gradients with feedback"
    bits: ClassVar[int] = 4
    levels: ClassVar[float] = 7
    offset: ClassVar[float] = 8
    block: int = field(default=128, kw_only=True)


@named("int2", kind="codec")
@dataclass(frozen=True)
class Int2(Integer):
    """Four levels, −1½, −½, ½ and 1½ steps: the nearest to an element, or one next to it by chance.

    To the nearest, a step is 5/4 of the block's mean magnitude, within a thousandth the best for a normal distribution
    (relative error 0.34; three levels reach 0.44). It contracts for any distribution: what an element of magnitude a
    adds to ‖x − C(x)‖² − ‖x‖² is concave in a, so that the sum is largest, and still below 0, where all are equal.
    By chance, the outermost levels are the largest magnitude.
    """

    paper: ClassVar[str] = "Max 1960, Quantizing for Minimum Distortion (IRE Trans. Inf. Theory 6), table II"
    when: ClassVar[str] = "a fourteenth of the bytes: with feedback"
    bits: ClassVar[int] = 2
    offset: ClassVar[float] = 1.5
    block: int = field(default=128, kw_only=True)

    @property
    def levels(self) -> float:
        return 1.5 if self.random else 0.8

    def measure(self, rows: Tensor, room: Scratch) -> None:
        (magnitudes if self.random else means)(rows, room)

    def confine(self, shifted: Tensor) -> None:
        if not self.random:
            shifted.clamp_(0, 3)

    def centred(self, tops: Bytes) -> Bytes:
        return np.bitwise_or(tops, np.uint8(0x20), out=tops)

    def lost(self, rows: Tensor, scales: Tensor) -> Tensor:
        if self.random:
            return super().lost(rows, scales)
        step, magnitude = scales / self.levels, rows.abs()
        return (magnitude - (0.5 + (magnitude > step)) * step).square().sum(1, keepdim=True)
