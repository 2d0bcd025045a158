"""Frames on a byte stream: a bounded header, then the bytes of tensors, read straight to where they are awaited.

    kind u8 · tensors u8 · descriptor length u16 · tag u32 · channel u64 · body length u64 · descriptor · body

A descriptor gives each tensor as dtype u8, dimensions u8, then each size as u64. :class:`FrameReader` does no I/O: it
says where the next bytes should be read to (``space``), and is told how many came (``advance``). Small frames pass
through a staging buffer so that one read takes many; the body of a large one goes directly to the memory that its
receiver named. Every length is checked before memory is taken.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.core import Payload
from stretto.errors import ProtocolError

DATA, CREDIT, BYE = 1, 2, 3

LARGEST_BODY = 1 << 31
MOST_TENSORS = 255
MOST_DIMENSIONS = 8
STAGING = 16 << 10

_header = struct.Struct("<BBHIQQ")
_vector = struct.Struct("<BBHIQQBBQ")
_line = struct.Struct("<BBQ")
_dtypes = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
)
_codes = {dtype: i for i, dtype in enumerate(_dtypes)}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame's header. ``shapes`` holds (dtype, sizes) of each tensor in the body."""

    kind: int
    tag: int
    channel: int
    length: int
    shapes: tuple[tuple[torch.dtype, tuple[int, ...]], ...]


def view_of(x: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, shared."""
    if x.numel() == 0:
        return memoryview(b"")
    flat = x.detach() if x.requires_grad else x
    return (flat if flat.dim() == 1 else flat.reshape(-1)).view(torch.uint8).numpy().data


def control(kind: int, channel: int = 0, amount: int = 0) -> bytes:
    """A frame without tensors; ``amount`` travels in the tag field (credit in KiB)."""
    return _header.pack(kind, 0, 0, amount, channel, 0)


def encode(channel: int, tag: int, payload: Payload) -> tuple[bytes, list[memoryview], int]:
    """A data frame as (header, body views, body bytes). The views share the payload's memory."""
    if len(payload) == 1 and payload[0].dim() == 1 and payload[0].is_contiguous():
        x = payload[0]
        n = x.numel()
        length = _bounded(n * x.element_size())
        head = _vector.pack(DATA, 1, 10, tag, channel, length, _codes[x.dtype], 1, n)
        return head, [view_of(x)] if n else [], length
    if len(payload) > MOST_TENSORS:
        raise ProtocolError(f"a message of {len(payload)} tensors is more than {MOST_TENSORS}; send them in several")
    descriptor, views, length = b"", [], 0
    for x in payload:
        code, dims = _codes[x.dtype], x.dim()
        descriptor += _line.pack(code, 1, len(x)) if dims == 1 else struct.pack(f"<BB{dims}Q", code, dims, *x.shape)
        length += x.nbytes
        if x.numel():
            _bounded(length)
            views.append(view_of(x.contiguous()))
    head = _header.pack(DATA, len(payload), len(descriptor), tag, channel, _bounded(length))
    return head + descriptor, views, length


def _bounded(length: int) -> int:
    if length > LARGEST_BODY:
        raise ProtocolError(f"a message of {length} bytes is more than {LARGEST_BODY}; send it in parts")
    return length


def tensors(frame: Frame, body: bytearray | memoryview) -> Payload:
    """The payload of a frame over its body's memory."""
    out, at = [], 0
    for dtype, sizes in frame.shapes:
        count = 1
        for s in sizes:
            count *= s
        if count:
            flat = torch.frombuffer(body, dtype=dtype, count=count, offset=at)
            out.append(flat if len(sizes) == 1 else flat.reshape(sizes))
        else:
            out.append(torch.empty(sizes, dtype=dtype))
        at += count * dtype.itemsize
    return tuple(out)


def _read_descriptor(raw: bytes, count: int, length: int) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
    shapes, at, total = [], 0, 0
    for _ in range(count):
        if at + 2 > len(raw):
            raise ProtocolError("a frame's descriptor ends early")
        code, dims = raw[at], raw[at + 1]
        if code >= len(_dtypes) or dims > MOST_DIMENSIONS or at + 2 + 8 * dims > len(raw):
            raise ProtocolError(f"a frame describes a tensor of dtype {code} and {dims} dimensions")
        sizes = struct.unpack_from(f"<{dims}Q", raw, at + 2)
        numel = 1
        for s in sizes:
            numel *= s
        total += numel * _dtypes[code].itemsize
        if total > length or any(s > LARGEST_BODY for s in sizes):
            raise ProtocolError(f"a frame describes more than its {length} bytes")
        shapes.append((_dtypes[code], sizes))
        at += 2 + 8 * dims
    if at != len(raw) or total != length:
        raise ProtocolError(f"a frame describes {total} bytes but announces {length}")
    return tuple(shapes)


def _room(length: int) -> bytearray | memoryview:
    """Memory for a body; a large one is not cleared first."""
    return bytearray(length) if length < STAGING else view_of(torch.empty(length, dtype=torch.uint8))


class FrameReader:
    """Bytes in, frames out, without I/O.

    ``place(frame)`` names the memory for a body (a writable view of exactly its length), or None to have it allocated.
    """

    def __init__(self, place: Callable[[Frame], memoryview | None]) -> None:
        self._place = place
        self._staging = bytearray(STAGING)
        self._stage = memoryview(self._staging)
        self._start = self._end = 0
        self._frame: Frame | None = None
        self._body: bytearray | memoryview = b""  # type: ignore[assignment]
        self._target = memoryview(b"")
        self._filled = 0

    def space(self) -> memoryview:
        """Where to read to next; never empty."""
        if self._frame is not None:
            return self._target[self._filled :]
        if self._start:
            rest = self._end - self._start
            self._stage[:rest] = self._staging[self._start : self._end]
            self._start, self._end = 0, rest
        return self._stage[self._end :]

    def advance(self, count: int) -> Iterator[tuple[Frame, bytearray | memoryview]]:
        """Take ``count`` bytes read into ``space()``; yields finished frames with their bodies.

        Raises:
            ProtocolError: the bytes are no frame of ours.
        """
        if self._frame is not None:
            self._filled += count
            if self._filled < self._frame.length:
                return
            frame, body = self._frame, self._body
            self._frame = None
            yield frame, body
            return
        self._end += count
        while True:
            ready = self._parse()
            if ready is None:
                return
            yield ready

    def _parse(self) -> tuple[Frame, bytearray | memoryview] | None:
        have = self._end - self._start
        if have < _header.size:
            return None
        kind, count, described, tag, channel, length = _header.unpack_from(self._staging, self._start)
        if not DATA <= kind <= BYE or length > LARGEST_BODY or (kind != DATA and (length or described or count)):
            raise ProtocolError(f"a frame of kind {kind} and {length} bytes is none of ours")
        if described > count * (2 + 8 * MOST_DIMENSIONS) or described > STAGING - _header.size:
            raise ProtocolError(f"a frame announces a descriptor of {described} bytes for {count} tensors")
        if have < _header.size + described:
            return None
        at = self._start + _header.size
        shapes = _read_descriptor(bytes(self._staging[at : at + described]), count, length)
        frame = Frame(kind, tag, channel, length, shapes)
        self._start = at + described
        if not length:
            return frame, memoryview(b"")
        target = self._place(frame)
        self._body = _room(length) if target is None else target
        self._target = memoryview(self._body)
        early = min(length, self._end - self._start)
        self._target[:early] = self._stage[self._start : self._start + early]
        self._start += early
        self._filled = early
        if early == length:
            return frame, self._body
        self._frame = frame
        return None
