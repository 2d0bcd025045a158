"""Where parameters live: a run's slots, cut once, and the chain of holders that each has for as long as an epoch lasts.

*Theory of operation.* :func:`assign` fills the chains place by place, primaries first. A slot keeps its holder in each
place, unless that one has far too much (who was alone with everything). Where it has none, because that one is gone or
there never was one, it goes to a holder that has a copy and does not become too heavy by it; else to a light one, and
a backup rather to who backs up little of the same primary, so that a death is borne by all who are left. At last slots
move from the heavy to the light as long as two are too far apart: more than the largest slot among primaries, twice
that among backups. Slots whose chain is short, and that are copied in any case, move first. So

* no primary carries more than the mean and the largest slot;
* who goes leaves the primaries of slots that it had no copy of where they were;
* who comes is given slots until it is close enough to the others, and nothing else moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from msgspec import Struct

SMALLEST: Final = 1 << 20
LARGEST: Final = 4 << 20
"""Bytes of a slot, where nothing else is asked for."""

_PARTS: Final = 8
"""A model is cut into about so many slots where their bounds allow it, and a table into no more."""

_LINE: Final = 64
"""Dense slots begin at multiples of so many bytes."""


@dataclass(frozen=True, slots=True)
class Extent:
    """What a bucket holds: ``pieces`` of (elements, optimizer's param group), in their order.

    ``width``: it is a table, in rows of so many elements; 0 otherwise.
    """

    dtype: str
    pieces: tuple[tuple[int, int], ...]
    width: int = 0

    @property
    def elements(self) -> int:
        return sum(elements for elements, _ in self.pieces)

    @property
    def itemsize(self) -> int:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.elements * self.itemsize


class Piece(Struct, frozen=True, forbid_unknown_fields=True):
    """Elements of a slot, counted from its beginning, that the optimizer steps as part of ``group``."""

    group: int
    start: int
    stop: int


class Slot(Struct, frozen=True, forbid_unknown_fields=True):
    """Elements ``start`` to ``stop`` of a bucket; ``width``: rows of so many, where it is of a table."""

    number: int
    bucket: int
    start: int
    stop: int
    dtype: str
    pieces: tuple[Piece, ...]
    width: int = 0

    @property
    def elements(self) -> int:
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return self.elements * dtype.itemsize


def plan_slots(extents: Sequence[Extent], slot: int = 0) -> tuple[Slot, ...]:
    """Cut every bucket into slots of about ``slot`` bytes; without, of an eighth of the model, within bounds.

    A table is cut between rows, into at most 8 slots. Pure: all agents cut alike.
    """
    total = sum(extent.nbytes for extent in extents if not extent.width)
    usual = slot or min(max(total // _PARTS, SMALLEST), LARGEST)
    slots: list[Slot] = []
    for bucket, extent in enumerate(extents):
        for start, stop in pairwise(_cuts(extent, slot or SMALLEST) if extent.width else _cuts(extent, usual)):
            pieces = _pieces(extent, start, stop)
            slots.append(Slot(len(slots), bucket, start, stop, extent.dtype, pieces, extent.width))
    return tuple(slots)


def _cuts(extent: Extent, nbytes: int) -> list[int]:
    """Where the slots of a bucket begin, and where the last one ends, in elements."""
    unit = extent.width or _LINE // extent.itemsize
    units = -(-extent.elements // unit)
    parts = min(-(-extent.nbytes // nbytes), units, _PARTS if extent.width else units)
    return [min(extent.elements, unit * (units * part // parts)) for part in range(parts + 1)] if parts else []


def _pieces(extent: Extent, start: int, stop: int) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    at = 0
    for elements, group in extent.pieces:
        first, last = max(at, start) - start, min(at + elements, stop) - start
        at += elements
        if first >= last:
            continue
        if pieces and pieces[-1].group == group:
            pieces[-1] = Piece(group, pieces[-1].start, last)
        else:
            pieces.append(Piece(group, first, last))
    return tuple(pieces)


def assign(
    sizes: Sequence[int],
    holders: Sequence[int],
    hosts: Sequence[int],
    replicas: int,
    current: Mapping[int, Sequence[int]],
) -> tuple[tuple[int, ...], ...]:
    """The chain of each slot: the ranks that hold it, primary first. Pure: equal wherever it is asked.

    Args:
        sizes: of the slots, in bytes.
        holders: the ranks that may hold some.
        hosts: which host each rank is on, of all ranks.
        replicas: how long chains are, as far as there are holders; 0: 2.
        current: who has the newest values of a slot now, primary first.
    """
    length = min(len(holders), replicas or 2)
    known = [[rank for rank in current.get(slot, ()) if rank in holders] for slot in range(len(sizes))]
    chains: list[tuple[int, ...]] = [()] * len(sizes)
    for _ in range(length):
        places = _Places(sizes, holders, hosts, chains, known, length)
        places.keep()
        places.fill()
        places.level()
        chains = [(*chain, places.holder[slot]) for slot, chain in enumerate(chains)]
    return tuple(chains)


class _Places:
    """The next place of all ``chains``: which ``holder`` each slot has there."""

    def __init__(
        self,
        sizes: Sequence[int],
        holders: Sequence[int],
        hosts: Sequence[int],
        chains: Sequence[tuple[int, ...]],
        known: Sequence[Sequence[int]],
        length: int,
    ) -> None:
        self.holder: dict[int, int] = {}
        self._sizes, self._chains, self._known = sizes, chains, known
        self._place = len(chains[0]) if chains else 0
        self._largest = max(sizes, default=0)
        self._apart = self._largest * (2 if self._place else 1)
        self._short = [len(ranks) < length for ranks in known]
        self._slots: dict[int, set[int]] = {rank: set() for rank in holders}
        self._load = dict.fromkeys(holders, 0)
        self._borne = Counter({rank: 0 for rank in holders})
        for size, chain in zip(sizes, chains, strict=True):
            self._borne.update(dict.fromkeys(chain, size))
        self._behind: Counter[tuple[int, ...]] = Counter()
        self._allowed = {chain: _allowed(chain, holders, hosts) for chain in set(chains)}

    def keep(self) -> None:
        """What has a holder in this place keeps it, where those before it do; whole chains first.

        (Far too much is what levelling would take from a primary again, slot by slot.)
        """
        enough = 2 * sum(self._sizes) / len(self._load) + self._largest
        for slot in sorted(range(len(self._sizes)), key=lambda slot: (self._short[slot], slot)):
            chain, ranks = self._chains[slot], self._known[slot]
            if len(ranks) > self._place and chain == tuple(ranks[: self._place]):
                rank = ranks[self._place]
                if rank in self._allowed[chain] and (chain or self._load[rank] + self._sizes[slot] <= enough):
                    self._put(slot, rank)

    def fill(self) -> None:
        """What has none is given one; large ones first."""
        for slot in sorted(range(len(self._sizes)), key=lambda slot: (-self._sizes[slot], slot)):
            if slot not in self.holder:
                allowed = self._allowed[self._chains[slot]]
                least = min(self._load[rank] for rank in allowed) - self._sizes[slot]
                above = {rank: self._load[rank] - least for rank in allowed}
                light = [rank for rank in allowed if above[rank] <= self._largest]
                copies = [rank for rank in self._known[slot] if above.get(rank, self._apart + 1) <= self._apart]
                self._put(slot, min(copies or light, key=lambda rank: self._cost(slot, rank)))

    def level(self) -> None:
        """Slots move from the heavy to the light, as long as two are too far apart."""
        while (move := self._move()) is not None:
            slot, light = move
            heavy = self.holder[slot]
            self._slots[heavy].remove(slot)
            self._load[heavy] -= self._sizes[slot]
            self._behind[self._chains[slot] + (heavy,)] -= self._sizes[slot]
            self._put(slot, light)

    def _move(self) -> tuple[int, int] | None:
        """Which slot moves, and to whom."""
        by_load = sorted(self._load, key=lambda rank: (self._load[rank], rank))
        for heavy in reversed(by_load):
            for light in by_load:
                if self._load[heavy] - self._load[light] <= self._apart:
                    break
                movable = [slot for slot in self._slots[heavy] if light in self._allowed[self._chains[slot]]]
                if movable:
                    return min(movable, key=lambda slot: self._reluctance(slot, light)), light
        return None

    def _put(self, slot: int, rank: int) -> None:
        self.holder[slot] = rank
        self._slots[rank].add(slot)
        self._load[rank] += self._sizes[slot]
        self._behind[self._chains[slot] + (rank,)] += self._sizes[slot]

    def _cost(self, slot: int, rank: int) -> tuple[int, ...]:
        behind = self._behind[self._chains[slot] + (rank,)]
        return (rank not in self._known[slot], behind, self._load[rank], self._borne[rank], rank)

    def _reluctance(self, slot: int, rank: int) -> tuple[int, ...]:
        return (not self._short[slot], *self._cost(slot, rank)[:2], -self._sizes[slot], slot)


def _allowed(chain: tuple[int, ...], holders: Sequence[int], hosts: Sequence[int]) -> frozenset[int]:
    """Who may be next in ``chain``: somebody on a host where none of it is, if there is such."""
    others = [rank for rank in holders if rank not in chain]
    taken = {hosts[rank] for rank in chain}
    return frozenset([rank for rank in others if hosts[rank] not in taken] or others)
