"""To whom the batches under way were dealt, and when the trainer learns of a new epoch.

Theory of operation. A trainer draws a batch, trains it, and learns with the closing of its fence whether members have
changed. So between the draw of a batch and its fence it may have been dealt to the members of before, or to those of
now. A closing is *whole* if all to whom the batch can have been dealt took part, and nobody else: only then the mean
over agents, weighted as they were dealt, is the mean over samples.
"""

from __future__ import annotations

from stretto.membership.messages import View
from stretto.session import views
from stretto.session.rounds import Closing, Parts, Round


class Dealing:
    """One agent's view of it. ``me`` is its uid."""

    def __init__(self, me: int) -> None:
        self._me = me
        self._moves: list[tuple[int, View]] = []
        self._dealt: tuple[tuple[int, ...], ...] = ()
        self._to_deal: tuple[tuple[int, ...], ...] = ()

    def begin(self, view: View) -> None:
        """The run begins with ``view``."""
        self._dealt = self._to_deal = (views.epoch_of(view).agents.uids,)

    def move(self, view: View) -> None:
        """We go on in ``view``, from its entry on."""
        self._moves = [(last, old) for last, old in self._moves if last < view.entry] + [(view.entry, view)]

    def enter_late(self, view: View) -> None:
        """We are new in ``view``: nothing was dealt to us."""
        self._dealt = self._to_deal = ()
        self._moves = [(view.entry, view)]

    def out(self) -> None:
        """We are in no view any more."""
        self._moves.clear()

    def closing(self, r: Round, parts: Parts) -> Closing:
        """What the trainer learns when ``r`` has ended, with these ``parts`` in it."""
        if r.fence:
            self._dealt, self._to_deal = self._to_deal, self._to_deal[-1:]
        counted = {frozenset(uids) for uids in self._dealt}
        whole = parts.size == len(parts.contributors) and counted == {frozenset(parts.contributors)}
        moved = [view for last, view in self._moves if last <= r.number]
        self._moves = [(last, view) for last, view in self._moves if last > r.number]
        if not moved:
            return Closing(r.number, parts.contributors, whole)
        epoch = views.epoch_of(moved[-1]).agents
        self._to_deal = (epoch.uids,) if r.fence else (*self._to_deal, epoch.uids)
        return Closing(r.number, parts.contributors, whole, epoch, epoch.uids.index(self._me))
