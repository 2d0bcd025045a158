"""Averages in shared memory without the courier: what a trainer does by itself, and what its courier can see of it.

Theory of operation. Where all agents share memory, trainers put their tensors on the epoch's
:class:`~stretto.links.memory.Board` and nobody is asked. But when the epoch ends the courier must know, and report,
which round its trainer is in and whether that is finished, and the trainer must not finish it behind its back. Both
share a desk. A trainer that has all results of a round writes that it has passed it and *then* looks whether the epoch
is frozen; a courier that freezes writes so and *then* looks what was passed. With a fence between, at least one of them
sees the other's word. A trainer that finds the epoch frozen asks: a round that was passed unseen by the courier does
not count, and is ordered from it like any other, from inputs that nobody has written.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from stretto.links.memory import Arena, Board, Ticket

MOST: Final = 1024
"""Buckets of a round that a desk has room for."""
_FROZEN, _HOLD, _ROUND, _OF, _FENCE, _PASSED, _SUBMITTED = range(7)
_HEAD: Final = 8
_COLUMNS: Final = 6
DTYPES: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a trainer is: the lowest ``round`` that it has not passed, and whether it is in it."""

    round: int
    begun: bool
    of: int
    fence: bool
    tickets: tuple[Ticket, ...]

    @property
    def submitted(self) -> bool:
        return self.begun and len(self.tickets) == self.of


class Desk:
    """Made before the courier is forked; from then on memory of both."""

    def __init__(self) -> None:
        self._arena = Arena.create(8 * (_HEAD + MOST * _COLUMNS))
        words = self._arena.bytes.view(torch.int64).numpy()
        self._head = words[:_HEAD]
        self._rows = words[_HEAD : _HEAD + MOST * _COLUMNS].reshape(MOST, _COLUMNS)
        self._lock = threading.Lock()
        self._head[_FROZEN] = 1

    # The trainer

    def begin(self, round: int, of: int, fence: bool) -> bool:
        """May the trainer do this round by itself?"""
        if self.frozen or of > MOST or (fence and self._head[_HOLD]):
            return False
        head = self._head
        head[_SUBMITTED], head[_OF], head[_FENCE] = 0, of, fence
        head[_ROUND] = round
        return self._still_open()

    @property
    def held(self) -> bool:
        """Does somebody want in?"""
        return bool(self._head[_HOLD])

    def submitted(self, bucket: int, ticket: Ticket, x: Tensor) -> None:
        self._rows[bucket, :4] = (ticket.large, ticket.number, x.numel(), DTYPES.index(x.dtype))
        self._head[_SUBMITTED] = bucket + 1

    def passed(self, round: int) -> bool:
        """The results of all its buckets are there. Does it count?"""
        self._head[_PASSED] = round
        return self._still_open()

    def _still_open(self) -> bool:
        with self._lock:  # a full fence: our write before our read
            pass
        return not self._head[_FROZEN]

    # The courier

    @property
    def frozen(self) -> bool:
        return bool(self._head[_FROZEN])

    @property
    def begun(self) -> int:
        """The latest round that the trainer has begun by itself."""
        return int(self._head[_ROUND])

    def open(self) -> None:
        """From now on the trainer may go by itself."""
        self._head[_PASSED] = self._head[_ROUND] = 0
        self._head[_FROZEN] = 0

    def hold(self) -> None:
        """The next fence is not for the trainer alone: whoever stops there stops all, for none can pass it without."""
        self._head[_HOLD] = 1

    def let_go(self) -> None:
        """Another epoch begins; who held for the last one's end may go on."""
        self._head[_HOLD] = 0

    def freeze(self) -> None:
        self._head[_FROZEN] = 1
        with self._lock:
            pass

    def standing(self) -> Standing:
        """Where the trainer is; to be asked when frozen."""
        round, passed = int(self._head[_ROUND]), int(self._head[_PASSED])
        if round == passed:
            return Standing(passed + 1, False, 0, False, ())
        return Standing(round, True, int(self._head[_OF]), bool(self._head[_FENCE]), self.tickets(round))

    def tickets(self, round: int) -> tuple[Ticket, ...]:
        """Of ``round``, the last that was begun, by bucket."""
        assert round == self._head[_ROUND]
        rows = self._rows[: int(self._head[_SUBMITTED])]
        return tuple(Ticket(bool(row[0]), int(row[1])) for row in rows)

    def blank(self, bucket: int) -> Tensor:
        """A tensor like the one of that bucket."""
        _, _, numel, code = self._rows[bucket, :4].tolist()
        return torch.empty(numel, dtype=DTYPES[code])


def is_complete(board: Board, standing: Standing) -> bool:
    """Has everybody done its part of the round?"""
    return standing.submitted and all(board.finished(ticket) for ticket in standing.tickets)
