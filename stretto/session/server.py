"""The session of a server: it is in the views like an agent, and in none of the rounds.

A server votes, and its death changes the view; fences, healing and the deal of samples pass it by. It has no trainer
to wait for, so it says that it is ready to come in as soon as it stands at the door, and is let in without a fence.
"""

from __future__ import annotations

from collections.abc import Callable

from stretto.core import Network
from stretto.errors import StrettoError
from stretto.membership.messages import Report, View
from stretto.session import views
from stretto.session.surroundings import Surroundings


class ServerSession:
    """One server in a run. ``me`` is its uid; ``refused(error)``: the run does not want us."""

    def __init__(self, me: int, surroundings: Surroundings, refused: Callable[[StrettoError], object]) -> None:
        self._me, self._around, self._refused = me, surroundings, refused
        self._view: View | None = None
        self._network = Network()
        self._frozen = False

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
            self._around.abandon()
            self._around.event("frozen", view=self._view.number if self._view else 0)
        network = self._network
        return Report(self._me, 0, False, b"", False, True, "", network.delay, network.rate)

    def install(self, view: View) -> None:
        """A view is decided. If we are in it, go on in its epoch; else ask to come in."""
        rank = views.rank_in(view, self._me)
        if rank is None:
            self.out()
            return
        if self._view is not None and all(report.uid != self._me for report in view.reports):
            self._around.part()
        self._view, self._frozen = view, False
        self._network = Network(view.delay, view.rate)
        self._around.enter(views.epoch_of(view), rank)
        self._around.measured(self._network)
        self._around.event("view", **views.told(view), rank=rank)

    def out(self) -> None:
        """We are in no view any more, and want to be."""
        self._around.abandon()
        self._around.part()
        self._view, self._frozen = None, False
        self.knock()

    def refuse(self, error: StrettoError) -> None:
        """Nobody will let us in."""
        self._around.abandon()
        self._refused(error)
