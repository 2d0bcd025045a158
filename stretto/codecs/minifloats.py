"""A byte as the upper half of a 16-bit float: what ``fp8`` and ``natural`` have in common.

Theory of operation. A sign, 7 bits of exponent and no mantissa, or 4 and 3, are the upper part of a bfloat16 or a
float16 (8 or 5 bits of exponent) of a magnitude below 2: the highest bit of its exponent is always 0, and to leave it
out is to move all but the sign up by one::

    sign 0 eeeeeee mmmmmmm  ──fold──►  sign eeeeeee │ mmmmmmm0      (the upper byte is the code)
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stretto.codecs.chunks import Bytes, Words

MAGNITUDE: Final = np.int16(0x7FFF)
HIGHEST: Final = np.int16(0x4000)


def fold(words: Words, spare: Words) -> None:
    """Leave out the highest bit of exponent, in place."""
    np.bitwise_and(words, MAGNITUDE, out=spare)
    np.add(words, spare, out=words)


def upper(words: Words, out: Bytes) -> None:
    """The upper byte of each. Overwrites them."""
    np.right_shift(words, 8, out=words)
    np.copyto(out, words, casting="unsafe")


def unfold(codes: NDArray[np.int8], words: Words) -> None:
    """The words that :func:`fold` would make such upper bytes of; all below them is 0."""
    np.copyto(words, codes)
    np.multiply(words, np.int16(1 << 7), out=words)
    np.bitwise_and(words, ~HIGHEST, out=words)
