"""How fast an agent computes: shares of a step a second, without the time in which it waits for others."""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import Final

_WINDOW: Final = 64


class Pace:
    """Told of every batch that is drawn; the median over the last ones, so that a test in between does not count."""

    def __init__(self) -> None:
        self._speeds: deque[float] = deque(maxlen=_WINDOW)
        self._share = self._at = self._waited = 0.0

    def drawn(self, share: float, waited: float) -> None:
        """A batch of ``share`` equal parts begins; ``waited``: seconds for others so far."""
        now = time.monotonic()
        busy = now - self._at - (waited - self._waited)
        if self._at and self._share and busy > 0:
            self._speeds.append(self._share / busy)
        self._share, self._at, self._waited = share, now, waited

    @property
    def speed(self) -> float:
        """0 before anything is known."""
        return median(self._speeds) if self._speeds else 0.0
