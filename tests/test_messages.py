"""Messages of membership arrive as they were sent, and no bytes do more than break the protocol."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto.errors import ProtocolError
from stretto.membership import Decoder, Hello, Message, Seat, View, Vote, encode
from stretto.membership.messages import (
    LONGEST,
    Ballot,
    Decide,
    Denied,
    Elsewhere,
    Leave,
    Prepare,
    Promise,
    Report,
    Suspect,
    Waiting,
)

UIDS = st.integers(1, 2**31 - 1)
ROUNDS = st.integers(0, 2**40)
SEATS = st.builds(Seat, UIDS, st.integers(-2, 65535), st.text(max_size=20), ROUNDS, *[st.just(("10.0.0.1:1",))] * 2)
BALLOTS = st.builds(Ballot, ROUNDS, UIDS)
REPORTS = st.builds(
    Report, UIDS, ROUNDS, st.booleans(), st.binary(max_size=20), st.booleans(), st.booleans(), st.text(max_size=20)
)
VIEWS = st.builds(
    View,
    ROUNDS,
    st.lists(SEATS, max_size=3).map(tuple),
    st.lists(UIDS, max_size=3).map(tuple),
    UIDS,
    st.lists(REPORTS, max_size=3).map(tuple),
    ROUNDS,
    st.text(max_size=50),
    st.floats(0, 10),
    st.floats(1, 1e12),
    st.none() | SEATS,
)
VOTES = st.builds(Vote, UIDS, ROUNDS, st.none() | BALLOTS, st.none() | BALLOTS, st.none() | VIEWS)
MESSAGES = st.one_of(
    st.builds(Hello, SEATS, st.integers(1, 65536), ROUNDS, st.none() | VOTES),
    st.builds(Leave, st.none() | VOTES),
    st.builds(Suspect, UIDS, st.text(max_size=200)),
    st.builds(Denied, st.text(max_size=200)),
    st.builds(Waiting, st.lists(st.integers(0, 65535), max_size=20).map(tuple)),
    st.builds(Elsewhere, SEATS),
    st.builds(Prepare, VIEWS, BALLOTS),
    st.builds(Promise, ROUNDS, BALLOTS, st.none() | VOTES, st.none() | REPORTS),
    st.builds(Decide, VIEWS),
)


@given(st.lists(MESSAGES, max_size=6), st.data())
@settings(max_examples=200, deadline=None)
def test_messages_arrive_as_they_were_sent_whatever_the_pieces(messages: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(encode, messages))
    decoder, arrived = Decoder(LONGEST), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        arrived += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert arrived == messages


@given(st.lists(st.binary(max_size=200), max_size=20), st.integers(0, 300))
@settings(max_examples=300, deadline=None)
def test_no_bytes_do_more_than_break_the_protocol(chunks: list[bytes], length: int) -> None:
    decoder = Decoder(256)
    try:
        for chunk in (length.to_bytes(4, "big"), *chunks):
            decoder.feed(chunk)
            assert 0 < decoder.wants <= 260
            assert len(decoder._buffer) < 260
    except ProtocolError:
        pass


@given(MESSAGES, st.integers(0, 10_000), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_a_damaged_message_is_another_one_or_breaks_the_protocol(message: Message, at: int, byte: int) -> None:
    data = bytearray(encode(message))
    data[at % len(data)] = byte
    with contextlib.suppress(ProtocolError):
        Decoder(LONGEST).feed(bytes(data))


def test_a_length_beyond_the_longest_takes_no_memory() -> None:
    with pytest.raises(ProtocolError, match="announced; the longest is 8388608"):
        Decoder(LONGEST).feed(b"\x7f\xff\xff\xff")


@pytest.mark.parametrize(
    "body",
    [
        b"\x80",
        b"\x91" * 5000,
        b"\x81\xa4kind\xa5leave\xc0",
        b"\x82\xa4kind\xa5leave\xa4more\x01",
        b"\x81\xa4kind\xa7unknown",
        b"\x82\xa4kind\xa5fence\xa5round\xff",
        b"\x81\xa4kind\xa4\xff\xff\xff\xff",
    ],
    ids=lambda body: body[:12].hex(),
)
def test_nonsense_is_no_message(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="no message of ours"):
        Decoder(LONGEST).feed(len(body).to_bytes(4, "big") + body)
