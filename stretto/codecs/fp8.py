"""A float of 8 bits for each element, and a scale for each block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.blocks import Blocked, magnitudes
from stretto.codecs.chunks import Bytes, Scratch
from stretto.codecs.minifloats import fold, unfold, upper
from stretto.errors import DamagedPayload, UsageError
from stretto.text import named


@named("fp8", kind="codec")
@dataclass(frozen=True)
class Fp8(Blocked):
    """8-bit floats, ``e4m3`` (3 bits of mantissa) or ``e5m2`` (2), scaled so that a block's largest is their largest.

    The codes are those of ``torch.float8_e4m3fn`` and ``torch.float8_e5m2``. Each is the upper byte of a float16 (of
    the magnitude times 2⁻⁸, for e4m3), which is quicker to make here than torch's own conversion.
    """

    paper: ClassVar[str] = "Micikevicius et al. 2022, FP8 Formats for Deep Learning (arXiv 2209.05433), section 3"
    when: ClassVar[str] = "as int8, where a block holds very large beside very small elements"
    bits: ClassVar[int] = 8
    format: Literal["e4m3", "e5m2"] = field(default="e4m3", kw_only=True)
    block: int = field(default=1024, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format not in ("e4m3", "e5m2"):
            raise UsageError(f"format={self.format!r} is neither 'e4m3' nor 'e5m2'")

    @property
    def folded(self) -> bool:
        return self.format == "e4m3"

    @property
    def levels(self) -> float:
        """The largest code, as the float16 it is the upper byte of."""
        return 1.75 if self.folded else 57344.0

    def measure(self, rows: Tensor, room: Scratch) -> None:
        magnitudes(rows, room)

    def write(self, rows: Tensor, noise: Tensor, codes: Bytes, room: Scratch) -> None:
        torch.mul(rows, room.over_scales(self.levels), out=room.rows)
        torch.from_numpy(room.words).view(torch.float16).copy_(room.rows.view(-1))
        np.add(room.words, np.int16(0x40 if self.folded else 0x80), out=room.words)  # half of what is cut: nearest
        if self.folded:
            fold(room.words, room.spare)
        upper(room.words, codes)

    def read(self, codes: Bytes, rows: Tensor, room: Scratch) -> None:
        if max(int(codes.view(np.int8).max()), int(codes.max()) - 0x80) >= (0x7F if self.folded else 0x7C):
            raise DamagedPayload(f"{self} was given a code to decode that stands for NaN or infinity")
        if self.folded:
            unfold(codes.view(np.int8), room.words)
        else:
            np.copyto(room.words, codes)
            np.multiply(room.words, np.int16(1 << 8), out=room.words)
        rows.copy_(torch.from_numpy(room.words).view(torch.float16).view(rows.shape))

    def lost(self, rows: Tensor, scales: Tensor) -> Tensor:
        """Half of the last place of each element, or of the smallest numbers."""
        relative, least = (2.0**-4, 2.0**-18) if self.folded else (2.0**-3, 2.0**-17)
        lost = torch.maximum(rows.abs() * relative, scales / self.levels * least)
        return lost.square().sum(1, keepdim=True) * (1 + 2.0**-6)
