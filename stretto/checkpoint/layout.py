"""Tensors in one file, in the safetensors format, streamed: a header that says what lies where, then the bytes.

https://github.com/huggingface/safetensors: 8 bytes, the header's length (little endian); the header, JSON; the tensors
one after another. Wide dtypes come first, so every tensor is aligned. The header is a function of the tensors alone, so
a reader who knows what was written compares it instead of believing it. We write it ourselves because the package makes
one bytes object of everything while it holds the interpreter's lock, and a trainer works beside us.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import IO, Final, Literal

import msgspec
import torch
from torch import Tensor

from stretto.checkpoint.tree import Length, dtype_named, raw
from stretto.errors import DataError

CHUNK: Final = 4 << 20
"""Bytes that are hashed, written or read at once; the interpreter's lock is free meanwhile."""

_CODES: Final = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""What every reader of the format knows; all else is written as its bytes, U8."""


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor in a file: which one of which state, under which name, and what its bytes hash to."""

    state: Literal["shared", "own"]
    number: int
    name: str
    dtype: str
    shape: tuple[Length, ...]
    digest: str = ""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * dtype_named(self.dtype).itemsize


def header(stored: Sequence[Stored]) -> bytes:
    """What comes before the bytes of these tensors."""
    lies: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for s in stored:
        shape = s.shape if s.dtype in _CODES else (s.nbytes,)
        lies[f"{s.state}.{s.name}"] = {
            "dtype": _CODES.get(s.dtype, "U8"),
            "shape": shape,
            "data_offsets": (at, at + s.nbytes),
        }
        at += s.nbytes
    text = json.dumps(lies, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text.encode()


def size(stored: Sequence[Stored]) -> int:
    """Bytes of a file that holds these tensors."""
    return len(header(stored)) + sum(s.nbytes for s in stored)


def ordered(stored: Sequence[tuple[Stored, Tensor]]) -> list[tuple[Stored, Tensor]]:
    """In the order of the file."""
    return sorted(stored, key=lambda pair: -pair[1].element_size())


def stream(stored: Sequence[tuple[Stored, Tensor]], digests: list[str]) -> Iterator[bytes | memoryview]:
    """The file, in chunks; meanwhile the digest of each tensor is put into ``digests``."""
    yield header([s for s, _ in stored])
    for _, x in stored:
        found, data = _hash(), raw(x)
        for at in range(0, len(data), CHUNK):
            chunk = data[at : at + CHUNK]
            found.update(chunk)
            yield chunk
        digests.append(found.hexdigest())


def read(file: IO[bytes], stored: Sequence[Stored], *, state: str = "") -> Iterator[tuple[Stored, Tensor]]:
    """The tensors of one state (or all) as they come, each verified.

    Raises:
        DataError: names the tensor that is not what was written.
    """
    expected = header(stored)
    if _exactly(file, len(expected)) != expected:
        raise DataError("its header is damaged")
    at = len(expected)
    for s in stored:
        if state in ("", s.state):
            file.seek(at)
            yield s, _tensor(file, s)
        at += s.nbytes


def _tensor(file: IO[bytes], s: Stored) -> Tensor:
    x = torch.empty(s.shape, dtype=dtype_named(s.dtype))
    found, room, at = _hash(), raw(x), 0
    while at < len(room):
        piece = file.read(min(CHUNK, len(room) - at))
        if not piece:
            raise DataError(f"tensor {s.state}.{s.name} is cut short: {at} of {len(room)} bytes are there")
        room[at : at + len(piece)] = piece
        found.update(piece)
        at += len(piece)
    if found.hexdigest() != s.digest:
        raise DataError(f"tensor {s.state}.{s.name} is damaged: its digest is not the one that was written")
    return x


def _exactly(file: IO[bytes], count: int) -> bytes:
    pieces = []
    while count and (piece := file.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)
