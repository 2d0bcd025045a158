"""What agents and holders of slots say to each other: a head of numbers, then the tensors it is about.

A head is one float64 tensor: whole numbers up to 2^53 are exact in it, and hyperparameters are what they are.

    kind │ uid │ clock │ have │ weight │ lease │ more …
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from stretto.core import Message, Payload
from stretto.errors import ProtocolError

REQUEST, ANSWER, VALUES, LEASED, STATE, TAKEN = range(6)
"""Tags on a slot's link: what is asked; answers, and large values by themselves, to be read to where they belong;
answers about samples; a slot given to a new holder; it has it."""

LARGE: Final = 64 << 10
"""Bytes of values that travel by themselves."""

PUSH, PAUSE, LEASE, RETURN, DEAL, LOAD, PULL, READ, COPY = range(9)
"""Kinds of requests. Those before ``PULL`` change the slot and go down its chain; the others ask its tail."""

GRANTED, FENCE, END, WAIT = range(4)
"""How a request for samples ends: here they are; all stop at a fence first; there are none; none yet."""

SAME, WHOLE, CHANGED, SOME, COPIED, THERE = range(6)
"""What an answer holds: nothing; all values; by what they changed, coded; rows that changed; all of the slot;
nothing, as the values are where they belong."""

_FIXED: Final = 6
_NOTHING: Final = torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Request:
    """``uid`` is who asks, and ``clock`` how many steps it has pushed, this one included.

    Attributes:
        have: the version of the values that it computed on, or has; -1: none.
        weight: of its part, where 1 is an equal one.
        lease: the number of the samples that it trained, or of the last that it was given.
        more: hyperparameters, or terms.
    """

    kind: int
    uid: int
    clock: int = 0
    have: int = -1
    weight: float = 1.0
    lease: int = -1
    more: Tensor = field(default=_NOTHING)

    @property
    def changes(self) -> bool:
        """Does it change the slot?"""
        return self.kind < PULL

    def head(self) -> Tensor:
        fixed = numbers(self.kind, self.uid, self.clock, self.have, self.weight, self.lease)
        return torch.cat([fixed, self.more]) if self.more.numel() else fixed


def read_request(message: Message) -> tuple[Request, Payload]:
    """A request and what came with it.

    Raises:
        ProtocolError: it is none.
    """
    head = message.payload[0] if message.payload else None
    if head is None or head.dtype != torch.float64 or head.numel() < _FIXED:
        raise ProtocolError(f"agent {message.src} sent no request: do all agents run the same version and strategy?")
    kind, uid, clock, have, weight, lease = head[:_FIXED].tolist()
    if not 0 <= kind <= COPY:
        raise ProtocolError(f"agent {message.src} asks for {kind}, which is nothing that a server does")
    return Request(int(kind), int(uid), int(clock), int(have), weight, int(lease), head[_FIXED:]), message.payload[1:]


def numbers(*values: float) -> Tensor:
    """A head, or a part of one. (An array is read a third as long as torch reads a tuple.)"""
    return torch.frombuffer(array("d", values), dtype=torch.float64)
