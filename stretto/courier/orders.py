"""What a trainer and its courier say to each other: one msgpack struct a datagram of their socket pair."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec
import torch

LONGEST: Final = 64 << 10


class Memory(msgspec.Struct, tag=True, frozen=True):
    """Map this memory of the trainer."""

    fd: int
    nbytes: int


class Use(msgspec.Struct, tag=True, frozen=True):
    """Group ``group`` of buckets is exchanged by this strategy."""

    group: int
    strategy: str


class Run(msgspec.Struct, tag=True, frozen=True):
    """Run exchange ``what`` on a piece of memory; ``number`` is the same at every agent."""

    number: int
    what: str
    memory: int
    offset: int
    numel: int
    dtype: str
    group: int = 0
    bucket: int = 0
    step: int = 0
    about: str = ""


class Ask(msgspec.Struct, tag=True, frozen=True):
    """Tell how many bytes have gone and come."""


class Finish(msgspec.Struct, tag=True, frozen=True):
    """The trainer leaves on purpose."""


class Done(msgspec.Struct, tag=True, frozen=True):
    number: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    number: int
    error: str
    message: str
    peer: int = -1


class Counted(msgspec.Struct, tag=True, frozen=True):
    sent: int
    received: int
    wire_sent: int
    wire_received: int
    connections: int
    cpu_seconds: float


Order: TypeAlias = Memory | Use | Run | Ask | Finish
Answer: TypeAlias = Done | Failed | Counted
encode = msgspec.msgpack.Encoder().encode
read_order = msgspec.msgpack.Decoder(Order).decode
read_answer = msgspec.msgpack.Decoder(Answer).decode
DTYPES = {
    str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)
}
