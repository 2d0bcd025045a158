"""How often an agent is started again: at once after a death, later and later while it dies right after its starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

QUICK: Final = 10.0
"""Seconds; who dies sooner after a start may do so after every start."""
MOST_QUICK: Final = 5


@dataclass(frozen=True, slots=True)
class Lives:
    """What became of one agent's lives so far. ``most``: how often it may be started again; None: always.

    >>> lives = Lives()
    >>> [(lives := lives.died(after=0.5)).pause for _ in range(4)]
    [0.0, 1.0, 2.0, 4.0]
    """

    most: int | None = None
    deaths: int = 0
    quick: int = 0

    def died(self, after: float) -> Lives:
        """One more life is over; it was ``after`` seconds long."""
        return replace(self, deaths=self.deaths + 1, quick=self.quick + 1 if after < QUICK else 0)

    @property
    def pause(self) -> float:
        """Seconds until the next start."""
        return 2.0 ** (self.quick - 2) if self.quick > 1 else 0.0

    @property
    def why_no_more(self) -> str | None:
        """Why it is not started again, if it is not."""
        if self.quick >= MOST_QUICK:
            return f"it died {self.quick} times in a row within {QUICK:g} s of its start"
        if self.most is not None and self.deaths > self.most:
            return f"an agent is started again {self.most} times at most" if self.most else "no agent is started again"
        return None

    def __str__(self) -> str:
        """When it is started again, for the log."""
        later = f" in {self.pause:g} s" if self.pause else ""
        return f"started again{later} ({_ordinal(self.deaths)} time)"


def _ordinal(number: int) -> str:
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
