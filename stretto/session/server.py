"""The session of a server: it is in the views like an agent, and in none of the rounds.

A server votes, and its death changes the view; fences, healing and the deal of samples pass it by. It has no trainer
to wait for, so it says that it is ready to come in as soon as it stands at the door, and is let in without a fence.
What it holds, and answers, is its :class:`~stretto.session.serving.Serving`'s, as an agent's is.
"""

from __future__ import annotations

from collections.abc import Callable

from stretto.core import Network
from stretto.errors import StrettoError
from stretto.membership.messages import Report, View
from stretto.session import views
from stretto.session.held import REAL, Makers
from stretto.session.metered import Meter
from stretto.session.rounds import Closing
from stretto.session.serving import Serving
from stretto.session.surroundings import Surroundings


class ServerSession:
    """One server in a run. ``me`` is its uid; ``refused(error)``: it cannot go on."""

    def __init__(
        self,
        me: int,
        surroundings: Surroundings,
        refused: Callable[[StrettoError], object],
        makers: Makers = REAL,
    ) -> None:
        self._me, self._around, self._refused = me, surroundings, refused
        self._view: View | None = None
        self._network = Network()
        self._frozen = False
        self._serving = Serving(me, surroundings, _Nobody(), Meter(surroundings.cpu), self.refuse, makers, serves=True)

    @property
    def inside(self) -> bool:
        """In an epoch, and not between two?"""
        return self._view is not None and not self._frozen

    def knock(self) -> None:
        """We are in no view: may we come in?"""
        self._around.ready("")

    def hold(self) -> None:
        """Fences are the trainers'."""

    def freeze(self) -> Report:
        """End every exchange of this epoch, for good."""
        if not self._frozen:
            self._frozen = True
            self._stop()
            self._around.event("frozen", view=self._view.number if self._view else 0)
        network = self._network
        return Report(self._me, 0, False, b"", False, True, "", network.delay, network.rate)

    def install(self, view: View) -> None:
        """A view is decided. If we are in it, go on in its epoch; else ask to come in."""
        rank = views.rank_in(view, self._me)
        if rank is None:
            self.out()
            return
        self._stop()
        if self._view is not None and all(report.uid != self._me for report in view.reports):
            self._around.part()
        self._view, self._frozen = view, False
        self._network = Network(view.delay, view.rate)
        epoch = views.epoch_of(view)
        self._around.enter(epoch, rank)
        self._around.measured(self._network)
        self._serving.enter(epoch, rank)
        self._around.event("view", **views.told(view), rank=rank)

    def out(self) -> None:
        """We are in no view any more, and want to be."""
        self._stop()
        self._serving.out()
        self._around.part()
        self._view, self._frozen = None, False
        self.knock()

    def refuse(self, error: StrettoError) -> None:
        """We cannot go on."""
        self._stop()
        self._refused(error)

    def _stop(self) -> None:
        self._serving.stop()
        self._around.abandon()


class _Nobody:
    """Here nobody trains, so nothing is ordered."""

    def done(self, number: int, closing: Closing | None) -> None:
        raise AssertionError(f"a server was told that order {number} is done")

    def failed(self, number: int, error: StrettoError) -> None:
        raise error
