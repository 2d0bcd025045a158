"""What becomes of the round under way when members change: it is shared whole with those who lack some, or redone.

Until a round of the next number has a result, somebody may lack one of the last: so those are kept here, and given to
who asks. Where the trainers share memory, they had some rounds by themselves, and their results are on the board.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from stretto.core import Link
from stretto.membership.messages import View
from stretto.membership.settle import Settlement
from stretto.session import views
from stretto.session.carrier import Carrier
from stretto.session.rounds import Cancel, Direct, Round, share_number
from stretto.session.surroundings import Ended, Surroundings


class Settling:
    """One agent's part in it. ``arrived(bucket, result)``: what we lacked of the round under way."""

    def __init__(self, around: Surroundings, carrier: Carrier, arrived: Callable[[int, Tensor], None]) -> None:
        self._around, self._carrier, self._arrived = around, carrier, arrived
        self._last: dict[int, Tensor] = {}
        self._reusable = False
        self._direct_until = 0
        self._running: list[Cancel] = []

    def keep(self, r: Round) -> None:
        """``r`` is closed; others may lack its results."""
        self._last = r.results
        self._reusable = r.shared is None and not r.direct and all(order.what == "mean" for order in r.orders.values())

    def passed(self) -> None:
        """Nobody can lack the last round any more."""
        if self._reusable:
            self._carrier.recycle(self._last.values())
        self.forget()

    def forget(self) -> None:
        """Nobody will ask us for the last round."""
        self._last = {}

    def stop(self) -> None:
        """End what is on its way."""
        for cancel in self._running:
            cancel()
        self._running.clear()

    def direct(self, direct: Direct) -> None:
        """That far the trainer came by itself."""
        self._direct_until = direct.round if direct.begun else direct.round - 1

    def taken_back(self, direct: Direct) -> Round:
        """The round that the trainer has begun by itself, as one of ours."""
        taken = Round(direct.round, direct.of, direct.fence, direct=True)
        if direct.finished:
            taken.results = self._around.direct_results(direct.round)
        return taken

    def settle(self, settlement: Settlement, r: Round | None, before: View, rank: int) -> None:
        """The oldest unfinished round, which may be ``r``, ours: it was the round of the view ``before``."""
        ours = r if r is not None and r.number == settlement.round else None
        if settlement.share:
            if ours is not None and ours.shared is None:
                ours.shared = views.parts(before, ours.number)
            if settlement.round > self._direct_until:
                self._share(settlement, self._last if ours is None else ours.results, rank)
            elif ours is not None:
                ours.results = self._around.direct_results(ours.number)
            return
        self._direct_until = min(self._direct_until, settlement.round - 1)  # what the board has of it is of no account
        if ours is not None:
            ours.results.clear()
            ours.shared, ours.direct = None, False
            self._around.event("redo", round=ours.number)

    def _share(self, settlement: Settlement, results: dict[int, Tensor], rank: int) -> None:
        """Give what others lack of the oldest unfinished round, and get what we lack."""
        link = self._around.link(share_number(settlement.round))
        for bucket, (holder, lacking) in enumerate(zip(settlement.holders, settlement.lacking, strict=True)):
            if holder == rank:
                for other in lacking:
                    self._reusable = False  # it may be on its way for long
                    link.post(other, (results[bucket],), bucket)
            elif rank in lacking:
                self._running.append(self._around.spawn(_get(link, holder, bucket), self._got(bucket)))
        self._around.event("share", round=settlement.round)

    def _got(self, bucket: int) -> Ended:
        def ended(value: Tensor, error: BaseException | None) -> None:
            if error is None:
                self._arrived(bucket, value)

        return ended


def redone(settlement: Settlement | None, r: Round | None) -> int | None:
    """The number of the round under way, where its exchanges will begin again: it is not finished anywhere."""
    if r is None or (settlement is not None and settlement.share and settlement.round == r.number):
        return None
    return r.number


async def _get(link: Link, holder: int, bucket: int) -> Tensor:
    return (await link.recv(holder, bucket)).payload[0]
