"""The state on its way: from us to newcomers, or to us, who are one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from stretto.core import Link
from stretto.errors import Disagreement, StrettoError
from stretto.exchanges import Arriving, Offer, donate, fetch, offered
from stretto.membership.messages import View
from stretto.session.rounds import Cancel, heal_number
from stretto.session.surroundings import Surroundings, Trainer
from stretto.session.views import donors, newcomers


class Healing:
    """One agent's part in it. What runs ends with the epoch (:meth:`stop`); what we have stays.

    ``refuse(error)``: what came is not what was offered.
    """

    def __init__(self, around: Surroundings, trainer: Trainer, refuse: Callable[[StrettoError], None]) -> None:
        self._around, self._trainer, self._refuse = around, trainer, refuse
        self._snapshot: Tensor | None = None
        self._before = 0
        self._offer: Offer | None = None
        self._arriving: Arriving | None = None
        self._link: Link | None = None
        self._running: list[Cancel] = []

    def stop(self) -> None:
        for cancel in self._running:
            cancel()
        self._running.clear()
        self._link = None

    def forget(self) -> None:
        """We are out: what we have is of no use to anybody."""
        self._snapshot = self._offer = self._arriving = None

    # Ours, for newcomers

    @property
    def ready(self) -> bool:
        """Is there a snapshot?"""
        return self._snapshot is not None

    def keep(self, snapshot: Tensor, before: int) -> None:
        """The state (uint8) as it was before round ``before``."""
        self._snapshot, self._before = snapshot, before

    def passed(self, number: int) -> None:
        """Everybody has come to round ``number``; newcomers that needed a snapshot of before have it."""
        if number > self._before:
            self._snapshot = None

    def serve(self, view: View, rank: int) -> None:
        """Let the newcomers have our snapshot."""
        if self._snapshot is None:
            return
        for newcomer in newcomers(view, self._before):
            if newcomer != rank:
                link = self._around.link(heal_number(self._before, newcomer))
                self._running.append(self._around.spawn(donate(link, newcomer, self._snapshot), _ignore))

    # Others', for us

    def seek(self, view: View, rank: int, number: int) -> None:
        """Ask who can give us the state; go on with what we have of it from before."""
        link = self._link = self._around.link(heal_number(number, rank))

        def ended(offer: Any, error: BaseException | None) -> None:
            if error is not None:
                return  # nobody who has it is left in this epoch
            self._offer = offer
            if self._arriving is not None and self._arriving.digest == offer.digest:
                self._fetch(link, offer)
            else:
                self._trainer.make_room(offer.nbytes)

        self._running.append(self._around.spawn(offered(link, donors(view, rank)), ended))

    def room(self, memory: Tensor) -> None:
        """There is memory for what was offered. (It may be of an offer of the epoch before: then another comes.)"""
        if self._offer is None:
            return
        self._arriving = Arriving(self._offer.digest, memory[: self._offer.nbytes])
        if self._link is not None:
            self._fetch(self._link, self._offer)

    def healed(self) -> int:
        """The trainer has taken the state over: its bytes."""
        nbytes = len(self._arriving.memory) if self._arriving is not None else 0
        self._offer = self._arriving = None
        return nbytes

    def _fetch(self, link: Link, offer: Offer) -> None:
        assert self._arriving is not None

        def ended(_: Any, error: BaseException | None) -> None:
            if error is None:
                self._trainer.heal()
            elif isinstance(error, Disagreement):
                self._refuse(error)

        self._running.append(self._around.spawn(fetch(link, offer.donors, self._arriving), ended))


def _ignore(value: Any, error: BaseException | None) -> None:
    return None
