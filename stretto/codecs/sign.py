"""One bit for each element: its sign; and for each block the mean magnitude."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.blocks import Blocked, means
from stretto.codecs.chunks import Bytes, Scratch
from stretto.text import named


@named("sign", kind="codec")
@dataclass(frozen=True)
class Sign(Blocked):
    """The sign of each element times the mean magnitude of its block.

    Of a block's x with n elements, ‖x‖² − ‖x‖₁²/n is lost: never more than there was.
    """

    paper: ClassVar[str] = "Karimireddy et al. 2019, Error Feedback Fixes SignSGD (arXiv 1901.09847), algorithm 1"
    when: ClassVar[str] = "a thirtieth of the bytes, with feedback: without, it does not converge"
    bits: ClassVar[int] = 1
    levels: ClassVar[float] = 1
    block: int = field(default=1024, kw_only=True)

    def measure(self, rows: Tensor, room: Scratch) -> None:
        means(rows, room)

    def write(self, rows: Tensor, noise: Tensor, codes: Bytes, room: Scratch) -> None:
        negative = np.signbit(rows.view(-1).numpy(), out=room.bytes.view(np.bool_))
        codes[:] = np.packbits(negative)

    def read(self, codes: Bytes, rows: Tensor, room: Scratch) -> None:
        signs = np.unpackbits(codes, count=rows.numel()).view(np.int8)
        np.negative(signs, out=signs)
        np.bitwise_or(signs, np.int8(1), out=signs)
        rows.copy_(torch.from_numpy(signs).view(rows.shape))

    def lost(self, rows: Tensor, scales: Tensor) -> Tensor:
        return (rows.square().sum(1, keepdim=True) - rows.shape[1] * scales.square()).clamp_(min=0)
