"""A round that the trainer does by itself, in shared memory, and orders from the courier if the epoch ends first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from stretto.courier.desk import Desk
from stretto.errors import PeerLost
from stretto.links.memory import Board, Ticket
from stretto.session import Closing

Wait = Callable[[], Closing | None]


class Courier(Protocol):
    """Who does it otherwise."""

    def order(self, group: int, x: Tensor, out: Tensor, *, bucket: int, of: int, fence: bool, part: int) -> Wait: ...
    def passed(self, round: int) -> None: ...
    def saw(self, round: int) -> bool: ...
    def lives(self) -> bool: ...


class Direct:
    """One such round, of ``of`` buckets; ``uids`` take part."""

    def __init__(
        self, board: Board, desk: Desk, round: int, of: int, fence: bool, uids: tuple[int, ...], courier: Courier
    ) -> None:
        self._board, self._desk, self._courier = board, desk, courier
        self._round, self._of, self._fence, self._uids = round, of, fence, uids
        self._parts: list[tuple[int, Tensor, Tensor, int]] = []
        self._tickets: list[Ticket] = []
        self._over = self._ordered = False

    def submit(self, group: int, bucket: int, x: Tensor, out: Tensor, part: int) -> Wait:
        self._parts.append((group, x, out, part))
        if not self._over:
            try:
                self._tickets.append(self._board.submit(x, out, 1.0 / self._board.size))
                self._desk.submitted(bucket, self._tickets[-1], x)
            except PeerLost:
                self._over = True
        return lambda: self._wait(bucket)

    def _wait(self, bucket: int) -> Closing | None:
        if self._ordered:
            return None
        if not self._over:
            try:
                self._board.wait(self._tickets[bucket])
            except PeerLost:
                self._over = True
        if self._over:
            return self._order_all()
        if bucket < self._of - 1:
            return None
        counts = self._desk.passed(self._round) and self._courier.lives()  # (one that was left out is ended)
        if not counts and not self._courier.saw(self._round):
            return self._order_all()
        self._courier.passed(self._round)
        return Closing(self._round, self._uids)

    def _order_all(self) -> Closing | None:
        """The courier knows what became of the epoch, and of this round."""
        self._ordered = True
        waits = [
            self._courier.order(group, x, out, bucket=bucket, of=self._of, fence=self._fence, part=part)
            for bucket, (group, x, out, part) in enumerate(self._parts)
        ]
        closings = [wait() for wait in waits]
        return next((c for c in closings if c is not None), None)
