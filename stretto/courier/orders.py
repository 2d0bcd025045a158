"""What a trainer and its courier say to each other: one msgpack struct a datagram of their socket pair."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec
import torch

from stretto.session import Closing, Layout
from stretto.session.rounds import What

LONGEST: Final = 1 << 20


class Memory(msgspec.Struct, tag=True, frozen=True):
    """Map this memory of the trainer."""

    fd: int
    nbytes: int


class Use(msgspec.Struct, tag=True, frozen=True):
    """Group ``group`` of buckets, laid out like this, is exchanged by this strategy."""

    group: int
    strategy: str
    layouts: tuple[Layout, ...] = ()


class Extent(msgspec.Struct, tag=True, frozen=True):
    """A tensor in the ``memory``-th piece of memory."""

    memory: int
    offset: int
    numel: int
    dtype: str


class Run(msgspec.Struct, tag=True, frozen=True):
    """Carry out ``what`` on a tensor; see :class:`stretto.session.Order`."""

    number: int
    what: What
    place: Extent
    group: int = 0
    bucket: int = 0
    of: int = 1
    fence: bool = False
    about: str = ""
    brings: bool = False
    round: int = 0
    part: int = 0
    clock: int = 0


class Hold(msgspec.Struct, tag=True, frozen=True):
    """Parameters, laid out like this, are held by servers; their values belong there."""

    spec: bytes
    layouts: tuple[Layout, ...]
    values: tuple[Extent, ...]


class Push(msgspec.Struct, tag=True, frozen=True):
    """Push these parts, by bucket; see :meth:`stretto.session.Session.push`."""

    number: int
    weight: float
    lease: int
    hyper: tuple[float, ...]
    parts: tuple[tuple[Extent, ...], ...]


class Inquire(msgspec.Struct, tag=True, frozen=True):
    """Ask servers ``what``; see :meth:`stretto.session.Session.ask`."""

    number: int
    what: str
    place: Extent
    clock: int


class Serve(msgspec.Struct, tag=True, frozen=True):
    """The board of this epoch lies in that memory of process ``pid``; the trainer is about to use it."""

    pid: int
    fd: int
    nbytes: int
    rank: int


class Donated(msgspec.Struct, tag=True, frozen=True):
    """The trainer's state lies there."""

    place: Extent


class Room(msgspec.Struct, tag=True, frozen=True):
    """There is room for the state."""

    place: Extent


class Healed(msgspec.Struct, tag=True, frozen=True):
    """The trainer has taken the state over."""


class Passed(msgspec.Struct, tag=True, frozen=True):
    """The trainer has done this round by itself, and finds the epoch frozen: had you seen it?"""

    round: int


class Recall(msgspec.Struct, tag=True, frozen=True):
    """What do the codecs remember?"""


class Remember(msgspec.Struct, tag=True, frozen=True):
    """This is what the codecs of one agent, or of several, remembered: go on from it."""

    place: Extent
    scale: float


class Ask(msgspec.Struct, tag=True, frozen=True):
    """Tell how many bytes have gone and come."""


class Finish(msgspec.Struct, tag=True, frozen=True):
    """The trainer leaves on purpose."""


class Done(msgspec.Struct, tag=True, frozen=True):
    number: int
    closing: Closing | None = None


class Failed(msgspec.Struct, tag=True, frozen=True):
    number: int
    error: str
    message: str


class Donate(msgspec.Struct, tag=True, frozen=True):
    """A newcomer needs the state as it is now: put it into memory and say where."""


class MakeRoom(msgspec.Struct, tag=True, frozen=True):
    """We need memory for a state of so many bytes."""

    nbytes: int


class Heal(msgspec.Struct, tag=True, frozen=True):
    """The state is there."""


class Seen(msgspec.Struct, tag=True, frozen=True):
    """That round was passed when the epoch was frozen, and counts; or it does not."""

    yes: bool


class Recalled(msgspec.Struct, tag=True, frozen=True):
    """It lies in this memory of the courier, until the next is asked for."""

    fd: int
    nbytes: int


class Remembered(msgspec.Struct, tag=True, frozen=True):
    """They go on from it, or why they cannot."""

    why: str = ""


class Counted(msgspec.Struct, tag=True, frozen=True):
    sent: int
    received: int
    wire_sent: int
    wire_received: int
    connections: int
    cpu_seconds: float
    codec_seconds: float
    dense: int
    coded: int


Order: TypeAlias = (
    Memory
    | Use
    | Run
    | Hold
    | Push
    | Inquire
    | Serve
    | Donated
    | Room
    | Healed
    | Passed
    | Recall
    | Remember
    | Ask
    | Finish
)
Answer: TypeAlias = Done | Failed | Donate | MakeRoom | Heal | Seen | Recalled | Remembered | Counted
encode = msgspec.msgpack.Encoder().encode
read_order = msgspec.msgpack.Decoder(Order).decode
read_answer = msgspec.msgpack.Decoder(Answer).decode
DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64)
}
