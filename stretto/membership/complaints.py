"""Pairs of members whose connection broke while both are well: made anew twice, then one of the two has to go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

IN_A_ROW: Final = 3
"""Views in a row in which a pair complains before one of it is left out."""


@dataclass(slots=True)
class Complaints:
    """Who complained about whom, in which views. ``apart``: pairs that are not let into one view again."""

    apart: set[frozenset[int]] = field(default_factory=set)
    _views: dict[frozenset[int], set[int]] = field(default_factory=dict)

    def note(self, by: int, about: int, number: int) -> frozenset[int] | None:
        """The pair, where it has complained in this view and the :data:`IN_A_ROW` - 1 before it."""
        pair = frozenset((by, about))
        views = self._views.setdefault(pair, set())
        views.add(number)
        return pair if all(number - back in views for back in range(IN_A_ROW)) else None

    def worse(self, pair: frozenset[int], rank: Callable[[int], int]) -> int:
        """The one of ``pair`` with more complaints; of equals the one of higher rank. They are kept apart."""
        self.apart.add(pair)
        return max(pair, key=lambda uid: (self._of(uid), rank(uid)))

    def forget(self, uid: int) -> None:
        """``uid`` is gone: whoever it could not reach may come."""
        self.apart = {pair for pair in self.apart if uid not in pair}
        self._views = {pair: views for pair, views in self._views.items() if uid not in pair}

    def parted(self, uid: int, members: set[int]) -> bool:
        """Could ``uid`` not reach one of ``members``?"""
        return any(uid in pair and not members.isdisjoint(pair - {uid}) for pair in self.apart)

    def _of(self, uid: int) -> int:
        return sum(len(views) for pair, views in self._views.items() if uid in pair)
