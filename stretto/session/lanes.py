"""One bucket of a group: which codec each part of it travels by, and what those codecs remember.

Theory of operation. A lossy codec is for gradients only: what rides along with them (flags, weights, buffers) is a lane
of its own, which travels as it is. Where the codec is another for some parameters (``per_layer``), each group of them
is a lane, too.

What a codec remembers changes while a round is under way, and a round may be redone among others. So the state before
a round is kept until the next one begins, and :meth:`Lanes.undo` goes back to it. Between two epochs nothing is
remembered but what was held back: :meth:`Lanes.flush` adds it to what the bucket is next given, in whatever way that
will travel. All else begins anew, with draws that follow from the epoch's number, so that newcomers draw what the
others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from stretto.codecs import Identity
from stretto.core import Cell, Codec, Like, Link, Named, Strategy, mixed
from stretto.errors import DataError, UsageError
from stretto.exchanges import Lane
from stretto.session.metered import Meter, Metered
from stretto.text import parse

_AS_IT_IS: Final = Identity()


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies in a bucket: so many elements of gradients, which are those of ``pieces``, then what rides along."""

    gradients: int
    pieces: tuple[Named, ...] = ()
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Place:
    """Where we are: in which epoch, at which rank, among agents on these hosts. Draws follow from it."""

    epoch: int
    rank: int
    hosts: tuple[int, ...]


@dataclass(slots=True)
class _Way:
    """One lane: ``ranges`` of the gradients, by ``codec``."""

    codec: Codec
    ranges: tuple[tuple[int, int], ...]
    cell: Cell

    def gather(self, x: Tensor) -> Tensor:
        pieces = [x[start:stop] for start, stop in self.ranges]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def scatter(self, mean: Tensor, x: Tensor) -> None:
        sizes = [stop - start for start, stop in self.ranges]
        for (start, stop), piece in zip(self.ranges, mean.split(sizes), strict=True):
            if x[start:stop].data_ptr() != piece.data_ptr():
                x[start:stop] = piece


class Lanes:
    """What ``strategy`` makes of one bucket; ``number`` tells it from the others of the run."""

    def __init__(self, strategy: Strategy, layout: Layout, number: int, meter: Meter) -> None:
        self._strategy, self._layout, self._number, self._meter = strategy, layout, number, meter
        self._dtype = torch.float32
        self._place: Place | None = None
        self._ways: list[_Way] = []
        self._owed: Tensor | None = None
        self._round = 0
        self._before: tuple[list[Any], Tensor | None] = ([], None)

    async def mean(self, link: Link, x: Tensor, place: Place, number: int) -> Tensor:
        """The mean of ``x`` (1-d) over agents, in its own memory, in round ``number``."""
        if self._place is None or self._dtype != x.dtype:
            self._enter(self._strategy, x.dtype, place)
        self._round, self._before = number, ([way.cell.state for way in self._ways], self._owed)
        gradients, riders = x[: self._layout.gradients], x[self._layout.gradients :]
        if self._owed is not None:
            gradients += self._owed.to(x.dtype)
            self._owed = None
        work = [self._carry(Lane(link, i), way, gradients) for i, way in enumerate(self._ways, 1)]
        if riders.numel():
            riding = self._strategy.exchange.mean(Lane(link, 0), riders, _AS_IT_IS, Cell(Like.of(riders)))
            await link.together(riding, *work)
        else:
            await link.together(*work)
        return x

    async def _carry(self, link: Link, way: _Way, gradients: Tensor) -> None:
        mean = await self._strategy.exchange.mean(link, way.gather(gradients), way.codec, way.cell)
        way.scatter(mean, gradients)

    def undo(self, number: int) -> None:
        """Round ``number`` did not happen: remember what was remembered before."""
        if number == self._round:
            states, self._owed = self._before
            for way, state in zip(self._ways, states, strict=True):
                way.cell.state = state
            self._round = 0

    def flush(self) -> None:
        """An epoch has ended: what was held back is owed, and all else forgotten. It may still be undone."""
        self._flush(self._strategy)

    def _flush(self, by: Strategy) -> None:
        if self._place is None:
            return
        states, owed = self._before
        self._before = [], self._held(by, states, owed) if self._round else None
        self._owed = self._held(by, [way.cell.state for way in self._ways], self._owed)
        self._place, self._ways = None, []

    def _held(self, by: Strategy, states: Sequence[Any], owed: Tensor | None) -> Tensor | None:
        """What is owed, and what was held back in these states of our ways."""
        assert self._place is not None
        for way, state in zip(self._ways, states, strict=True):
            kept = by.exchange.kept(way.codec, Cell(way.cell.like, state), self._place.hosts)
            if kept is not None:
                owed = torch.zeros(self._layout.gradients) if owed is None else owed.clone()
                way.scatter(way.gather(owed) + kept, owed)
        return owed

    def forget(self) -> None:
        """Begin anew."""
        self._place, self._ways, self._round, self._owed = None, [], 0, None

    def take_over(self, other: Lanes) -> None:
        """What ``other`` has held back so far, we owe."""
        other.flush()
        self._owed = other._owed

    def state(self) -> Any:
        """What is remembered between two rounds, in plain values."""
        place = self._place
        return {
            "strategy": str(self._strategy),
            "dtype": str(self._dtype).removeprefix("torch."),
            "place": [place.epoch, place.rank, list(place.hosts)] if place is not None else None,
            "ways": [way.cell.state for way in self._ways],
            "owed": self._owed,
        }

    def restore(self, states: Sequence[Any], place: Place, scale: float) -> None:
        """Go on from what was remembered elsewhere: exactly, where that was this place; else owe what all held back.

        ``scale``: how many agents we are to one of those.

        Raises:
            DataError: it is damaged, or of another model's bucket.
        """
        owed: Tensor | None = None
        for state in states:
            try:
                strategy = self._remember(state)
            except (KeyError, TypeError, ValueError, AttributeError, UsageError) as e:
                raise DataError(f"what the checkpoint has of a bucket's codec does not fit this model: {e}") from e
            there = self._place
            same = there is not None and (there.rank, there.hosts) == (place.rank, place.hosts)
            if same and len(states) == 1 and strategy == self._strategy:
                self._place = place
                return
            self._flush(strategy)
            if self._owed is not None:
                owed = self._owed * scale if owed is None else owed.add_(self._owed, alpha=scale)
        self._owed = owed

    def _remember(self, state: Any) -> Strategy:
        """Be where ``state`` was saved; the strategy that it was saved under."""
        strategy: Strategy = parse(state["strategy"], "strategy")
        self.forget()
        self._owed = state["owed"]
        if self._owed is not None and self._owed.shape != (self._layout.gradients,):
            raise ValueError(f"{tuple(self._owed.shape)} elements are owed, of {self._layout.gradients}")
        if state["place"] is not None:
            epoch, rank, hosts = state["place"]
            self._enter(strategy, getattr(torch, state["dtype"]), Place(epoch, rank, tuple(hosts)))
            for way, found in zip(self._ways, state["ways"], strict=True):
                way.cell.state = found
        return strategy

    def _enter(self, strategy: Strategy, dtype: torch.dtype, place: Place) -> None:
        like = Like((self._layout.gradients,), dtype, self._layout.pieces)
        seed = mixed(place.epoch, self._number)
        self._dtype, self._place, self._ways = dtype, place, []
        for i, (codec, ranges) in enumerate(strategy.codec.groups(like)):
            pieces = tuple(piece for start, stop in ranges for piece in like.part(start, stop, 0).pieces)
            numel = sum(piece.numel for piece in pieces)
            cell = Cell(Like((numel,), dtype, pieces, mixed(seed, i), mixed(seed, i, place.rank)))
            self._ways.append(_Way(Metered(codec, self._meter), ranges, cell))
