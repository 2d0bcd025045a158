"""Frames: what goes in comes out, however the stream is cut; and no bytes do more than be refused."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stretto.errors import ProtocolError
from stretto.links import wire
from stretto.links.wire import Frame, FrameReader

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool)
HEADER = struct.Struct("<BBHIQQ")

tensors = st.builds(
    lambda dtype, shape, seed: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=4),
    st.integers(0, 9),
)
payloads = st.lists(tensors, max_size=5).map(tuple)
messages = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), payloads), max_size=6)


def written(channel: int, tag: int, payload: tuple[Tensor, ...]) -> bytes:
    head, views, length = wire.encode(channel, tag, payload)
    body = b"".join(bytes(v) for v in views)
    assert len(body) == length
    return head + body


def feed(reader: FrameReader, data: bytes, cuts: Iterator[int]) -> Iterator[tuple[Frame, bytes]]:
    """As a socket would: never more than the reader has space for, and never more than the next cut."""
    at = 0
    while at < len(data):
        space = reader.space()
        assert len(space) > 0
        count = min(len(space), next(cuts), len(data) - at)
        space[:count] = data[at : at + count]
        at += count
        for frame, body in reader.advance(count):
            yield frame, bytes(body)


def endless(pieces: list[int]) -> Iterator[int]:
    while True:
        yield from pieces or [1 << 30]


@given(messages, st.lists(st.integers(1, 300), max_size=10))
def test_what_is_written_is_read_however_the_stream_is_cut(
    sent: list[tuple[int, int, tuple[Tensor, ...]]], pieces: list[int]
) -> None:
    stream = b"".join(written(*message) for message in sent)
    got = list(feed(FrameReader(lambda frame: None), stream, endless(pieces)))
    assert len(got) == len(sent)
    for (frame, body), (channel, tag, payload) in zip(got, sent, strict=True):
        assert (frame.kind, frame.channel, frame.tag) == (wire.DATA, channel, tag)
        again = wire.tensors(frame, bytearray(body))
        assert len(again) == len(payload)
        for a, b in zip(again, payload, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@given(st.integers(0, 3 * wire.STAGING), st.integers(1, 5000))
def test_a_body_goes_straight_to_the_memory_that_is_named_for_it(numel: int, piece: int) -> None:
    room = bytearray(numel)
    asked: list[Frame] = []

    def place(frame: Frame) -> memoryview:
        asked.append(frame)
        return memoryview(room)

    x = torch.arange(numel, dtype=torch.int64).to(torch.uint8)
    stream = written(1, 2, (x,)) + written(1, 3, ())
    frames = [frame for frame, _ in feed(FrameReader(place), stream, endless([piece]))]
    assert [frame.tag for frame in frames] == [2, 3]
    assert bytes(room) == bytes(x.tolist())
    assert len(asked) == (1 if numel else 0)


@pytest.mark.parametrize("kind", [wire.CREDIT, wire.BYE])
def test_a_frame_without_tensors_carries_its_amount(kind: int) -> None:
    ((frame, body),) = feed(FrameReader(lambda f: None), wire.control(kind, 9, 4096), endless([5]))
    assert (frame.kind, frame.channel, frame.tag, body) == (kind, 9, 4096, b"")


def test_views_share_the_memory_of_what_is_sent() -> None:
    x = torch.zeros(1000)
    _, (view,), _ = wire.encode(0, 0, (x,))
    x[0] = 1.0
    assert bytes(view[:4]) == struct.pack("<f", 1.0)


def test_too_many_tensors_are_refused_before_they_are_sent() -> None:
    with pytest.raises(ProtocolError, match="256 tensors is more than 255"):
        wire.encode(0, 0, (torch.zeros(()),) * 256)


@pytest.mark.parametrize(
    "x",
    [
        torch.empty(wire.LARGEST_BODY + 1, dtype=torch.uint8),
        torch.empty(wire.LARGEST_BODY // 4 + 1, 1),
        torch.zeros(1).expand(wire.LARGEST_BODY // 4 + 1),
    ],
    ids=["a vector", "a matrix", "one number, expanded"],
)
def test_too_large_a_message_is_refused_before_it_is_touched(x: Tensor) -> None:
    """(Untouched memory costs nothing.)"""
    with pytest.raises(ProtocolError, match="send it in parts"):
        wire.encode(0, 0, (x,))


# Bytes of others


def announce(
    kind: int = 1, count: int = 1, described: int = 10, tag: int = 0, channel: int = 0, length: int = 4
) -> bytes:
    return HEADER.pack(kind, count, described, tag, channel, length)


vector = struct.pack("<BBQ", 0, 1, 1)
BAD = {
    "an unknown kind": announce(kind=0),
    "another unknown kind": announce(kind=4),
    "a body beyond the bound": announce(length=wire.LARGEST_BODY + 1),
    "a body of 2^64 - 1": announce(length=2**64 - 1),
    "credit with a body": announce(kind=wire.CREDIT, count=0, described=0, length=1),
    "goodbye with tensors": announce(kind=wire.BYE, described=0, length=0),
    "a descriptor too long for its tensors": announce(count=1, described=1000),
    "a descriptor without tensors": announce(count=0, described=2),
    "an unknown dtype": announce() + struct.pack("<BBQ", 200, 1, 1),
    "too many dimensions": announce(described=10) + struct.pack("<BBQ", 0, 9, 1),
    "a descriptor that ends early": announce(count=2, described=10) + vector,
    "a descriptor that is too long": announce(count=1, described=18, length=4) + vector + bytes(8),
    "less than it announces": announce(length=8) + vector,
    "more than it announces": announce(length=0) + vector,
    "a size that overflows": announce(count=1, described=18, length=0) + struct.pack("<BBQQ", 0, 2, 2**63, 2),
    "a huge empty tensor": announce(count=1, described=18, length=0) + struct.pack("<BBQQ", 0, 2, 2**63, 0),
}


@pytest.mark.parametrize("data", BAD.values(), ids=list(BAD))
def test_what_no_agent_sends_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="frame"):
        list(feed(FrameReader(lambda frame: None), data, endless([])))


def survives(data: bytes, pieces: list[int]) -> None:
    """Frames or a refusal, nothing else; and what is given out is what was announced."""
    announced: list[int] = []

    def place(frame: Frame) -> memoryview:
        announced.append(frame.length)
        return _dump[: frame.length] if frame.length <= len(_dump) else _refuse(frame)

    try:
        for frame, body in feed(FrameReader(place), data, endless(pieces)):
            assert len(body) == frame.length <= len(data)
            wire.tensors(frame, bytearray(body))
    except (ProtocolError, _TooLarge):
        return


class _TooLarge(Exception):
    """A body within the bound, but larger than a test has memory for."""


def _refuse(frame: Frame) -> memoryview:
    assert frame.length <= wire.LARGEST_BODY
    raise _TooLarge


_dump = memoryview(bytearray(1 << 20))


@given(st.binary(max_size=4000), st.lists(st.integers(1, 500), max_size=5))
def test_fuzz_any_bytes_give_frames_or_a_protocol_error(data: bytes, pieces: list[int]) -> None:
    survives(data, pieces)


@given(messages, st.data())
def test_fuzz_altered_frames_give_frames_or_a_protocol_error(
    sent: list[tuple[int, int, tuple[Tensor, ...]]], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(written(*message) for message in sent))
    for _ in range(data.draw(st.integers(0, 5))):
        if stream:
            at = data.draw(st.integers(0, len(stream) - 1))
            stream[at] = data.draw(st.integers(0, 255))
    survives(bytes(stream), data.draw(st.lists(st.integers(1, 200), max_size=5)))


@pytest.mark.parametrize("length", [1 << 20, 1 << 28, 2**31, 2**31 + 1, 2**63])
def test_no_memory_is_taken_for_what_is_announced_and_cannot_be_true(length: int) -> None:
    """A body beyond the bound, or that its descriptor does not describe."""
    data = announce(described=10, length=length) + struct.pack("<BBQ", 0, 1, 3)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            list(feed(FrameReader(lambda frame: None), data, endless([])))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * wire.STAGING
