"""Codes of a few bits, several in a byte: the first part of a chunk's elements in the lowest bits, and so on.

With b bits an element, n elements are cut into 8 / b *planes* of equally many (the last may be short): byte i holds the
i-th element of each. Planes rather than neighbours, because then every operation is on whole contiguous vectors.

Codes are read at the *top* of a signed byte: there a two's complement code c of b bits is worth c · 2^(8−b).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from stretto.codecs.chunks import Bytes

_ones: Final = {8: 0x01, 4: 0x11, 2: 0x55}


def pack(codes: Bytes, bits: int, out: Bytes) -> None:
    """Codes from 0 to 2^bits − 1 into ``out``, with the top bit of each turned: what counted from −2^(bits−1) is two's
    complement then. Overwrites the codes."""
    n, length = len(codes), len(out)
    low = codes[:length]
    for plane in range(1, 8 // bits):
        high = codes[plane * length : min((plane + 1) * length, n)]
        np.multiply(high, np.uint8(1 << plane * bits), out=high)
        part = low[: len(high)]
        np.bitwise_or(part, high, out=part)
    np.bitwise_xor(low, np.uint8(_ones[bits] << bits - 1), out=out)


def unpack(raw: Bytes, bits: int, room: Bytes) -> Bytes:
    """What :func:`pack` wrote, at the top of each byte: in ``room``, or as it is where that is so."""
    if bits == 8:
        return raw
    n, length, top = len(room), len(raw), np.uint8(0x100 - (1 << 8 - bits))
    for plane in range(8 // bits):
        part = room[plane * length : min((plane + 1) * length, n)]
        np.multiply(raw[: len(part)], np.uint8(1 << 8 - bits * (plane + 1)), out=part)
        np.bitwise_and(part, top, out=part)
    return room
