"""The courier's side of shared memory: its share of every average, and what its trainer does there by itself."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from torch import Tensor

from stretto.core import Epoch, Member
from stretto.courier.desk import Desk, is_complete
from stretto.links.memory import Arena, Board
from stretto.membership.control import process_state
from stretto.session import Direct


class Sharing:
    """One epoch's board after the other, and the desk shared with the trainer."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._board: Board | None = None
        self._sharers: tuple[Member, ...] = ()
        self._passed = 0

    def saw(self, round: int) -> bool:
        """Had the trainer passed ``round`` when we froze?"""
        return round <= self._passed

    @property
    def begun(self) -> int:
        """The latest round that the trainer has begun by itself."""
        return self._desk.begun

    def serve(self, arena: Arena, rank: int, members: tuple[Member, ...]) -> None:
        """This epoch's board. (If the epoch is over already the trainer will not use it.)"""
        self._board = Board(arena, rank, len(members), lambda: self._desk.frozen)
        self._sharers = members
        self._desk.open()
        self._board.serve()

    def hold(self) -> None:
        self._desk.hold()

    def direct(self) -> Direct | None:
        """End this epoch's board; where the trainer is. None when there is no board that is open."""
        if self._board is None or self._desk.frozen:
            return None
        self._desk.freeze()
        self._board.freeze()
        at = self._desk.standing()
        self._passed = at.round - 1
        return Direct(at.round, at.begun, at.of, at.fence, is_complete(self._board, at))

    def direct_results(self, round: int) -> dict[int, Tensor]:
        """Of the round that the trainer is in, by bucket, when all have done their part."""
        assert self._board is not None
        return {
            bucket: self._board.result(ticket, self._desk.blank(bucket))
            for bucket, ticket in enumerate(self._desk.tickets(round))
        }

    def enter(self, epoch: Epoch) -> None:
        """Another epoch begins."""
        self._end_writers(epoch)
        self._desk.let_go()

    def _end_writers(self, epoch: Epoch) -> None:
        """Couriers of those who are out could write into the memory of those who are in, if they ran again: end them.

        So are trainers that stand still: when they go on they could take what was begun without us for a result.
        Others have left, and may have a model to save, or find that their courier has ended.
        """
        for rank, member in enumerate(self._sharers):
            pid = self._board.courier_of(rank) if self._board is not None and member.uid not in epoch.uids else 0
            if pid:  # (0 would be all of us)
                for one in (pid, member.pid) if process_state(member.pid) == "T" else (pid,):
                    with suppress(ProcessLookupError):
                        os.kill(one, signal.SIGKILL)
        self._sharers = ()
