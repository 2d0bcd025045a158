"""What some agents mix among themselves, beside the rounds of all.

Theory of operation. A mixing leaves each agent with something of its own, so it need not end at all alike, and may fail
at one and not at another: who is interrupted keeps what it had. But those who mix must be in the same epoch, or one
would wait there for another who has passed that point before. So in a new epoch nobody mixes until its trainer has
seen the end of a round that ended there for all: every point of the script after that lies in this epoch, for all.
``Order.round`` says which rounds the trainer has seen the end of; a view's ``entry`` is the first such round.

Where agents are *served* (:class:`stretto.core.Served`) the courier answers others from the same cell, whatever its
trainer does meanwhile.

What is mixed is counted from where all agreed last. So when all have agreed anew, which the trainer tells, all that was
remembered is forgotten, and whoever is served asks over a link of another number: who has agreed waits for who is about
to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stretto.codecs import Identity
from stretto.core import Cell, Codec, Like, Served, Strategy, mixed
from stretto.errors import DataError, PeerLost, StrettoError
from stretto.session.carrier import as_ours
from stretto.session.lanes import Layout, Place
from stretto.session.metered import Meter, Metered
from stretto.session.rounds import AGREED, SETTLE, Cancel, Closing, Order, mix_number, serve_number
from stretto.session.surroundings import Ended, Surroundings, Trainer


class Mixer:
    """One agent's part in it. One group of buckets mixes at most.

    ``refuse(error)``: nobody can be answered any more.
    """

    def __init__(
        self, around: Surroundings, trainer: Trainer, meter: Meter, refuse: Callable[[StrettoError], None]
    ) -> None:
        self._around, self._trainer, self._meter, self._refuse = around, trainer, meter, refuse
        self._strategy: Strategy | None = None
        self._layouts: Sequence[Layout] = ()
        self._cells: list[Cell] = []
        self._place: Place | None = None
        self._entry = self._since = 0
        self._under_way: dict[int, Cancel] = {}
        self._servers: list[Cancel] = []

    def use(self, strategy: Strategy, layouts: Sequence[Layout]) -> None:
        """Mix buckets that are laid out like this as ``strategy`` says, where it does."""
        if strategy.beside is None:
            return
        place = self._place
        self.stop()
        self._place = place
        self._strategy, self._layouts = strategy, layouts
        self._begin()

    def enter(self, place: Place, entry: int) -> None:
        """Another epoch begins; round ``entry`` is the first that ends in it for all."""
        self._place, self._entry, self._since = place, entry, 0
        self._begin()

    def stop(self) -> None:
        """End what is under way, and answer nobody: this epoch is over."""
        self._place = None
        self._end()

    def order(self, order: Order) -> None:
        """Mix ``order.x``; it stays as it is where that cannot be."""
        place, strategy = self._place, self._strategy
        if place is None or strategy is None or strategy.beside is None or order.round <= self._entry:
            self._alone(order.number)
            return
        mixing, cell = strategy.beside.mixing, self._cells[order.part]
        served = isinstance(mixing, Served)
        if order.clock in (SETTLE, AGREED):
            if order.clock == AGREED:
                self._since = order.round
                self._end()
                self._begin()
            elif isinstance(mixing, Served) and (owed := mixing.settle(cell)) is not None:
                order.x.add_(owed)
            self._trainer.done(order.number, None)
            return
        number = serve_number(self._since, order.part) if served else mix_number(order.clock, order.part)
        work = mixing.mix(self._around.link(number), order.x.clone(), self._codec(strategy), cell, order.clock)
        self._under_way[order.number] = lambda: None
        cancel = self._around.spawn(work, self._ended(order, None if served else number))
        if order.number in self._under_way:
            self._under_way[order.number] = cancel

    def remembered(self) -> list[Any]:
        """What is remembered of each bucket, in plain values."""
        return [cell.state for cell in self._cells]

    def restore(self, states: Sequence[Any]) -> None:
        """Go on from what was remembered at this place, if anything was.

        Raises:
            DataError: it is of other buckets.
        """
        if states and len(states) != len(self._cells):
            raise DataError(f"the checkpoint has {len(states)} mixed buckets, and these models {len(self._cells)}")
        for cell, state in zip(self._cells, states, strict=False):
            cell.state = state

    def _ended(self, order: Order, exchange: int | None) -> Ended:
        def ended(value: Tensor, error: BaseException | None) -> None:
            if self._under_way.pop(order.number, None) is None:
                return
            if exchange is not None:
                self._around.forget(exchange)
            if error is None:
                order.x.copy_(value)
                self._trainer.done(order.number, None)
            elif isinstance(error, PeerLost):
                self._alone(order.number)
                self._around.missed(error.peer)
            else:
                self._trainer.failed(order.number, as_ours(error))

        return ended

    def _served(self, value: Any, error: BaseException | None) -> None:
        """Whoever is lost ends the epoch; else it is a fault."""
        if error is not None and not isinstance(error, PeerLost):
            self._refuse(as_ours(error))

    def _end(self) -> None:
        """What is under way stays as it was; nobody is answered any more."""
        for number, cancel in list(self._under_way.items()):
            cancel()
            self._alone(number)
        for cancel in self._servers:
            cancel()
        self._servers.clear()

    def _codec(self, strategy: Strategy) -> Codec:
        return strategy.codec if strategy.codec == Identity() else Metered(strategy.codec, self._meter)

    def _alone(self, number: int) -> None:
        self._around.event("unmixed", entry=self._entry)
        self._under_way.pop(number, None)
        self._trainer.done(number, Closing(0, alone=True))

    def _begin(self) -> None:
        """Remember nothing yet, and answer others from now on."""
        strategy, place = self._strategy, self._place
        if strategy is None or strategy.beside is None or place is None:
            return
        mixing = strategy.beside.mixing
        self._cells = [_cell(layout, part, place) for part, layout in enumerate(self._layouts)]
        if isinstance(mixing, Served) and len(place.hosts) > 1:
            for part, cell in enumerate(self._cells):
                link = self._around.link(serve_number(self._since, part))
                work = mixing.serve(link, self._codec(strategy), cell)
                self._servers.append(self._around.spawn(work, self._served))


def _cell(layout: Layout, part: int, place: Place) -> Cell:
    seed = mixed(place.epoch, part)
    like = Like((layout.gradients,), getattr(torch, layout.dtype), layout.pieces, seed, mixed(seed, place.rank))
    return Cell(like)
