"""IDX files, as MNIST is published: a strict and bounded reader.

    file = 0 0 type dimensions {size} {value}      sizes are big-endian uint32; the only type here is 8, unsigned bytes

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stretto.errors import DataError

UNSIGNED_BYTE = 8
MOST_DIMENSIONS = 4
MOST_BYTES = 1 << 28


def parse(content: bytes, name: str) -> NDArray[np.uint8]:
    """The array in ``content``: uint8, read-only, without a copy. ``name`` is used in errors.

    Raises:
        DataError: ``content`` is anything else than one whole IDX array of unsigned bytes.
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(
            f"{name} is not an IDX file: it begins with {content[:4].hex(' ') or 'nothing'}, not with 00 00"
        )
    kind, dimensions = content[2], content[3]
    if kind != UNSIGNED_BYTE or not 1 <= dimensions <= MOST_DIMENSIONS:
        raise DataError(
            f"{name}: expected an IDX array of unsigned bytes (08) with 1 to {MOST_DIMENSIONS} dimensions, "
            f"found type {kind:02x} with {dimensions}"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{name} is truncated: its header needs {start} bytes, it has {len(content)}")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{name} is truncated or damaged: {' x '.join(map(str, shape))} needs {math.prod(shape)} bytes of values, "
            f"it has {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read(path: Path, most: int = MOST_BYTES) -> NDArray[np.uint8]:
    """The array in a gzip-compressed IDX file that holds at most ``most`` bytes.

    Raises:
        DataError: the file is missing, truncated, damaged, too large or not of this format.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(most + 1)
    except FileNotFoundError as e:
        raise DataError(f"{path} is missing") from e
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path} is truncated or damaged ({e}); remove it and fetch it again") from e
    if len(content) > most:
        raise DataError(f"{path} holds more than {most} bytes; that is not a data set of ours")
    return parse(content, str(path))
