"""The powers of two next to an element, one or the other by chance: its sign and exponent in one byte.

Theory of operation. An element is 2^e · (1 + m) with 23 bits of mantissa m. C_nat rounds it to 2^(e+1) with
probability m, else to 2^e (definition 1 of the paper). Adding 23 random bits to the float's bit pattern carries into
the exponent with exactly that probability, and to cut the mantissa off does the rest. 7 bits of exponent are enough
for everything down to 2⁻¹²⁶ of the block's largest power of two; what is smaller becomes that or 0, without bias too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.blocks import LARGEST, Blocked, magnitudes
from stretto.codecs.chunks import Bytes, Scratch
from stretto.codecs.minifloats import fold, unfold, upper
from stretto.codecs.noise import Noise, integers
from stretto.text import named


@named("natural", kind="codec")
@dataclass(frozen=True)
class Natural(Blocked):
    """The nearest powers of two above or below, by chance, so that the mean over draws is the tensor.

    Only where the power above is beyond the dtype its largest number is taken, and the mean is a little less.
    """

    paper: ClassVar[str] = "Horváth et al. 2019, Natural Compression (arXiv 1905.10988), definition 1"
    when: ClassVar[str] = "elements of very different sizes, without feedback"
    bits: ClassVar[int] = 8
    levels: ClassVar[float] = 0.5
    block: int = field(default=LARGEST, kw_only=True)

    @property
    def unbiased(self) -> bool:
        return True

    def noise(self, n: int, seed: int) -> Noise:
        return integers(23, n, seed)

    def measure(self, rows: Tensor, room: Scratch) -> None:
        """The power of two below the largest magnitude."""
        magnitudes(rows, room)
        exponent = room.measured.view(np.int32)
        np.bitwise_and(exponent, np.int32(0x7F800000), out=exponent)

    def write(self, rows: Tensor, noise: Tensor, codes: Bytes, room: Scratch) -> None:
        torch.mul(rows, room.over_scales(self.levels), out=room.rows)
        pattern = room.rows.view(torch.int32).add_(noise).view(-1).numpy()
        np.right_shift(pattern, 16, out=pattern)
        np.copyto(room.words, pattern, casting="unsafe")
        fold(room.words, room.spare)
        upper(room.words, codes)

    def read(self, codes: Bytes, rows: Tensor, room: Scratch) -> None:
        unfold(codes.view(np.int8), room.words)
        rows.copy_(torch.from_numpy(room.words).view(torch.bfloat16).view(rows.shape))

    def lost(self, rows: Tensor, scales: Tensor) -> Tensor:
        return rows.square().sum(1, keepdim=True)
