"""What agents and their coordinator say to be one run: msgpack of tagged structs, each behind its length (u32).

A length is checked before memory is taken, a message against its type before anybody sees it, and nothing is unpickled.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from stretto.core import FIRST_SERVER
from stretto.errors import ProtocolError

LONGEST: Final = 1 << 23
"""Bytes of the longest message: a :class:`View` of some thousands of agents."""

MOST_AGENTS: Final = FIRST_SERVER
_length = struct.Struct("!I")

FOUNDER: Final = -1
"""The label of a coordinator that is a process apart; who is UNNUMBERED gets the lowest free label."""
UNNUMBERED: Final = -2
STORE: Final = (1 << 31) - 1
"""The uid under which a store of views votes (:mod:`stretto.membership.stores`); no process has it."""
MOST_BUCKETS: Final = 1 << 14

Uid: TypeAlias = Annotated[int, Meta(ge=1, lt=1 << 31)]
Label: TypeAlias = Annotated[int, Meta(ge=UNNUMBERED, lt=2 * FIRST_SERVER)]
Round: TypeAlias = Annotated[int, Meta(ge=0)]
_Size: TypeAlias = Annotated[int, Meta(ge=1, le=MOST_AGENTS)]
_Name: TypeAlias = Annotated[str, Meta(max_length=256)]
_Text: TypeAlias = Annotated[str, Meta(max_length=4096)]
_Addresses: TypeAlias = Annotated[tuple[_Name, ...], Meta(max_length=64)]
_Labels: TypeAlias = Annotated[tuple[Label, ...], Meta(max_length=2 * MOST_AGENTS)]


class _Wire(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of every message."""


class Seat(_Wire, frozen=True, tag="seat"):
    """One process as the others know it. ``addresses`` are for data, ``control`` for what is said here.

    ``uid`` names this life of it, ``label`` its number in the launch (FOUNDER for a coordinator). ``healed``: it has
    the model; a newcomer gets it first. One that ``serves`` is a server: it needs no model, and trains nothing.
    """

    uid: Uid
    label: Label
    host: _Name
    pid: Annotated[int, Meta(ge=0)]
    addresses: _Addresses
    control: _Addresses
    healed: bool = True
    serves: bool = False


class Report(_Wire, frozen=True, tag="report"):
    """What a frozen member has finished. ``round`` is the lowest that it has not; ``done`` one byte a bucket of it.

    ``begun``: its trainer is in that round; ``fence``: and it is the first since a batch was drawn. ``delay`` and
    ``rate``: the network as this epoch has agreed that it is (the next view has the first member's). ``since``: the
    first round that it has any part in; a newcomer has no results of those before. A server has no rounds.
    """

    uid: Uid
    round: Round
    begun: bool
    done: Annotated[bytes, Meta(max_length=MOST_BUCKETS)]
    fence: bool
    healed: bool
    brought: _Name
    delay: Annotated[float, Meta(ge=0)] = 50e-6
    rate: Annotated[float, Meta(gt=0)] = 1e9
    since: Round = 0


class View(_Wire, frozen=True, tag="view"):
    """Who is in, by rank, from now on: agents, then servers. ``voters`` decide on the next one; ``reports`` are the
    old members'.

    Newcomers (``healed`` is false) take part from round ``entry`` on. ``delay`` in s, ``rate`` in bytes/s. ``founder``:
    the coordinator, as long as it takes part.
    """

    number: Annotated[int, Meta(ge=0)]
    seats: Annotated[tuple[Seat, ...], Meta(max_length=MOST_AGENTS)]
    voters: Annotated[tuple[Uid, ...], Meta(max_length=MOST_AGENTS)]
    leader: Uid
    reports: Annotated[tuple[Report, ...], Meta(max_length=MOST_AGENTS)]
    entry: Round
    why: _Text
    delay: Annotated[float, Meta(ge=0)]
    rate: Annotated[float, Meta(gt=0)]
    founder: Seat | None = None

    @property
    def agents(self) -> tuple[Seat, ...]:
        """Those who train, by rank."""
        return tuple(seat for seat in self.seats if not seat.serves)

    @property
    def trained(self) -> tuple[Report, ...]:
        """The reports of those who train."""
        serving = {seat.uid for seat in self.seats if seat.serves}
        return tuple(report for report in self.reports if report.uid not in serving)


class Ballot(_Wire, frozen=True, tag="ballot", order=True):
    """Orders proposals for one view."""

    turn: Annotated[int, Meta(ge=0)]
    uid: Uid


class Vote(_Wire, frozen=True, tag="vote"):
    """What an acceptor has promised and accepted for view ``number``. A restarted process hands in its last life's.

    ``base``: where it is kept, the view before, which is decided and which others may not have heard of.
    """

    uid: Uid
    number: Annotated[int, Meta(ge=0)]
    promised: Ballot | None
    accepted: Ballot | None
    view: View | None
    base: View | None = None


class Hello(_Wire, frozen=True, tag="hello"):
    """First word on a control connection: who I am, of how many at the start, which view I know (0: none)."""

    seat: Seat
    size: _Size
    view: Annotated[int, Meta(ge=0)]
    vote: Vote | None = None


class Waiting(_Wire, frozen=True, tag="waiting"):
    """Founder: these labels have not come yet (the highest free ones stand for processes without one)."""

    missing: _Labels


class Denied(_Wire, frozen=True, tag="denied"):
    """You cannot enter, and why."""

    why: _Text


class Elsewhere(_Wire, frozen=True, tag="elsewhere"):
    """I do not lead; this one does."""

    leader: Seat


class Ready(_Wire, frozen=True, tag="ready"):
    """Candidate: my first fence is reached; let me in. ``brought`` digests what prepare() was given."""

    brought: _Name


class Expect(_Wire, frozen=True, tag="expect"):
    """Leader: somebody wants in; hold your next fence round, and tell me."""


class Fence(_Wire, frozen=True, tag="fence"):
    """Member: I am at fence ``round`` and hold it until the view changes."""

    round: Round


class Suspect(_Wire, frozen=True, tag="suspect"):
    """Member: I lost this one."""

    uid: Uid
    why: _Text


class Leave(_Wire, frozen=True, tag="leave"):
    """I go, and all is well. ``vote``: the leader has it from now on, so that who left is not missed in a majority."""

    vote: Vote | None = None


class Pulse(_Wire, frozen=True, tag="pulse"):
    """I am alive; so is my trainer, or it is in this ``state`` (of /proc: R, S, D, T …); it has begun ``round``."""

    number: Annotated[int, Meta(ge=0)]
    state: Annotated[str, Meta(max_length=1)] = "R"
    round: Round = 0


class Prepare(_Wire, frozen=True, tag="prepare"):
    """Proposer: freeze ``base``, promise, and report; view ``base.number + 1`` is next."""

    base: View
    ballot: Ballot


class Promise(_Wire, frozen=True, tag="promise"):
    """Answer to :class:`Prepare`; ``report`` from members (and, ``healed`` false, from candidates)."""

    number: Annotated[int, Meta(ge=0)]
    ballot: Ballot
    vote: Vote | None
    report: Report | None


class Nack(_Wire, frozen=True, tag="nack"):
    """I have promised another proposer more."""

    number: Annotated[int, Meta(ge=0)]
    promised: Ballot


class Propose(_Wire, frozen=True, tag="propose"):
    ballot: Ballot
    view: View


class Accepted(_Wire, frozen=True, tag="accepted"):
    number: Annotated[int, Meta(ge=0)]
    ballot: Ballot


class Decide(_Wire, frozen=True, tag="decide"):
    """This view is decided."""

    view: View


class Finished(_Wire, frozen=True, tag="finished"):
    """All agents have left: nobody needs a server any more."""


Message: TypeAlias = (
    Hello
    | Waiting
    | Denied
    | Elsewhere
    | Ready
    | Expect
    | Fence
    | Suspect
    | Leave
    | Pulse
    | Prepare
    | Promise
    | Nack
    | Propose
    | Accepted
    | Decide
    | Finished
)

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
