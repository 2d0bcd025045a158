"""Who keeps the others waiting: alive, connected, and long overdue in a round that others have begun.

Nobody is left out for that: an agent that computes slowly is one that computes. It is named, once a round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Final

USUAL: Final = 5.0
"""How many usual rounds one may be late."""
SHORTEST: Final = 3.0
"""Seconds below which nobody is called slow."""
_REMEMBERED: Final = 64


@dataclass(frozen=True, slots=True)
class Late:
    """``uid`` has not begun ``round`` for so many ``seconds`` since others did; ``usual`` is how long a round takes."""

    uid: int
    round: int
    seconds: float
    usual: float

    @property
    def words(self) -> str:
        return (
            f"it has not come to round {self.round} for {self.seconds:.1f} s since others did (a round usually takes "
            f"{self.usual:.2g} s); they wait for it"
        )


@dataclass(slots=True)
class Laggards:
    """Told now and then how far everybody has come."""

    _round: int = 0
    _since: float = 0.0
    _took: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    _named: set[int] = field(default_factory=set)

    def observe(self, now: float, rounds: Mapping[int, int]) -> list[Late]:
        """``rounds``: the latest round that each has begun. Those to be named now.

        >>> watch = Laggards()
        >>> _ = watch.observe(0.0, {1: 1, 2: 1}), watch.observe(1.0, {1: 2, 2: 2})
        >>> [late.uid for late in watch.observe(2.0, {1: 3, 2: 2}) + watch.observe(9.0, {1: 3, 2: 2})]
        [2]
        """
        latest = max(rounds.values(), default=0)
        if latest != self._round:
            if latest > self._round > 0:
                self._took.append((now - self._since) / (latest - self._round))
            self._round, self._since = latest, now
            self._named.clear()
        usual = median(self._took) if self._took else 0.0
        overdue = now - self._since
        if latest == 0 or overdue < max(SHORTEST, USUAL * usual):
            return []
        late = [uid for uid, round in rounds.items() if round < latest and uid not in self._named]
        self._named.update(late)
        return [Late(uid, latest, overdue, usual) for uid in late]
