"""Who has copies of slots: when all that there were are lost together, the model is, and that is an honest end."""

from __future__ import annotations

from collections import defaultdict

from stretto.core import Epoch


class Copies:
    """As many of each slot are to be there, in an epoch of more members; 0: two.

    A slot may be lost if all those are who had it when there were as many as there are to be for the last time; or, if
    there never were, that many of those who came first.
    """

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas or 2
        self._having: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        self._last: dict[int, set[int]] = {}
        self._first: set[int] = set()
        self._came = 0

    def found(self, epoch: Epoch, uid: int, slots: list[int]) -> None:
        """Member ``uid`` of ``epoch`` is in the chains of these slots, and has them."""
        if not self._came:
            self._first, self._came = set(epoch.uids), epoch.size
        for slot in slots:
            having = self._having[epoch.number, slot]
            having.add(uid)
            if len(having) >= min(self._replicas, epoch.size):
                self._last[slot] = having

    def gone(self, uid: int) -> None:
        """It is in no epoch any more, and forgets what it had."""
        for having in (self._first, *self._having.values()):
            having.discard(uid)

    def lost(self, epoch: Epoch) -> bool:
        """May a slot be lost in this one?"""
        here = set(epoch.uids)
        never = {slot for _, slot in self._having} - self._last.keys()
        few = len(self._first & here) <= self._came - min(self._replicas, self._came)
        return (bool(never) and few) or any(not having & here for having in self._last.values())
