"""What agents and their coordinator say to each other: msgpack of tagged structs, each behind its length (u32).

A length is checked before memory is taken, a message against its type before anybody sees it, and nothing is unpickled.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from stretto.errors import ProtocolError

LONGEST_REQUEST: Final = 1 << 16
"""Bytes of the longest message that an agent sends."""
LONGEST_ANSWER: Final = 1 << 23
"""Bytes of the longest that a coordinator sends: a :class:`Welcome` to some thousands of agents."""

MOST_AGENTS: Final = 1 << 16
_length = struct.Struct("!I")

_Rank: TypeAlias = Annotated[int, Meta(ge=0, lt=MOST_AGENTS)]
_Size: TypeAlias = Annotated[int, Meta(ge=1, le=MOST_AGENTS)]
_Name: TypeAlias = Annotated[str, Meta(max_length=256)]
_Text: TypeAlias = Annotated[str, Meta(max_length=4096)]
_Addresses: TypeAlias = Annotated[tuple[_Name, ...], Meta(max_length=64)]
_Ranks: TypeAlias = Annotated[tuple[_Rank, ...], Meta(max_length=MOST_AGENTS)]


class _Wire(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of every message."""


class Join(_Wire, frozen=True, tag="join"):
    """Agent: here I am, one of ``size``; my rank is in my handshake."""

    size: _Size
    host: _Name
    pid: Annotated[int, Meta(ge=0)]
    addresses: _Addresses


class Waiting(_Wire, frozen=True, tag="waiting"):
    """Coordinator: these ranks have not come yet (the highest free ones stand for agents without a rank)."""

    missing: _Ranks


class Seat(_Wire, frozen=True, tag="seat"):
    """One member, in the order of ranks."""

    host: _Name
    pid: Annotated[int, Meta(ge=0)]
    addresses: _Addresses


class Welcome(_Wire, frozen=True, tag="welcome"):
    """Coordinator: all have come, the epoch begins, and you are ``rank``. ``delay`` in s, ``rate`` in bytes/s."""

    epoch: Annotated[int, Meta(ge=0)]
    rank: _Rank
    members: Annotated[tuple[Seat, ...], Meta(max_length=MOST_AGENTS)]
    delay: Annotated[float, Meta(ge=0)]
    rate: Annotated[float, Meta(gt=0)]


class Denied(_Wire, frozen=True, tag="denied"):
    """Coordinator: you cannot enter, and why."""

    why: _Text


class Leave(_Wire, frozen=True, tag="leave"):
    """Agent: I go, and all is well."""


class Left(_Wire, frozen=True, tag="left"):
    """Coordinator: ``rank`` said that it goes."""

    rank: _Rank


class Lost(_Wire, frozen=True, tag="lost"):
    """Coordinator: ``rank`` went without a word, and what we saw of it."""

    rank: _Rank
    why: _Text


Message: TypeAlias = Join | Waiting | Welcome | Denied | Leave | Left | Lost

_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """One message as it travels, its length before it."""
    body = _encoder.encode(message)
    return _length.pack(len(body)) + body


class Decoder:
    """Bytes in, messages out; no I/O. It keeps at most one unfinished message of ``longest`` bytes."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._buffer = bytearray()

    @property
    def wants(self) -> int:
        """Bytes that the unfinished message still lacks (its length first): who reads no more, reads nothing beyond."""
        if len(self._buffer) < _length.size:
            return _length.size - len(self._buffer)
        return _length.size + self._announced() - len(self._buffer)

    def feed(self, data: bytes) -> list[Message]:
        """The messages that ``data`` completes, in order.

        Raises:
            ProtocolError: a length beyond the longest, or bytes that are no message of ours.
        """
        messages: list[Message] = []
        self._buffer += data
        while len(self._buffer) >= _length.size:
            end = _length.size + self._announced()
            if len(self._buffer) < end:
                break
            messages.append(_decode(bytes(self._buffer[_length.size : end])))
            del self._buffer[:end]
        return messages

    def _announced(self) -> int:
        (length,) = _length.unpack_from(self._buffer)
        if not 0 < length <= self._longest:
            raise ProtocolError(f"a message of {length} bytes was announced; the longest is {self._longest}")
        return int(length)


def _decode(body: bytes) -> Message:
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise ProtocolError(f"{len(body)} bytes are no message of ours: {e}") from e
