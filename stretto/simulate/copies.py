"""Who has copies of slots: when all that there were are lost together, the model is, and that is an honest end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from stretto.core import Epoch


class Copies:
    """As many of each slot are to be there, in an epoch of more who can hold them; 0: two.

    A slot may be lost if all those are who had it when there were as many as there are to be for the last time; or, if
    there never were, that many of those who came first.
    """

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas or 2
        self._having: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        self._last: dict[int, set[int]] = {}
        self._first: set[int] = set()
        self._came = self._of = 0

    def found(self, epoch: Epoch, uid: int, slots: Sequence[int], of: int = 0) -> None:
        """Member ``uid`` of ``epoch`` is in the chains of these slots (``of`` so many), and has them."""
        holders = {member.uid for member in epoch.members if member.serves} or set(epoch.uids)
        self._of = self._of or of
        if not self._came:
            self._first, self._came = holders, len(holders)
        for slot in slots:
            having = self._having[epoch.number, slot]
            having.add(uid)
            if len(having) >= min(self._replicas, len(holders)):
                self._last[slot] = having

    def gone(self, uid: int) -> None:
        """It is in no epoch any more, and forgets what it had."""
        for having in (self._first, *self._having.values()):
            having.discard(uid)

    def lost(self, epoch: Epoch) -> bool:
        """May a slot be lost in this one?"""
        here = set(epoch.uids)
        few = len(self._first & here) <= self._came - min(self._replicas, self._came)
        return (few and len(self._last) < self._of) or any(not having & here for having in self._last.values())
