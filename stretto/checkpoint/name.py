"""What checkpoints are called, and which of them stay: names say their age, so a listing is enough to choose.

Later starts of a training have names that sort after earlier ones' (:func:`name_of_run`): "newest" is read off the
names, and needs no clock of the place or of the agents that wrote.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from stretto.errors import UsageError

_RUN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_STEP: Final = re.compile(r"step-(\d{1,18})-of-(\d{1,9})")


def name_of_run(wall: float, token: int) -> str:
    """A name for a training that starts at ``wall`` (seconds since 1970); ``token`` tells two of one second apart.

    >>> name_of_run(1_800_000_000.0, 7)
    '20270115T080000-00000007'
    """
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(wall))}-{token:08x}"


def is_run(text: str) -> bool:
    return _RUN.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """Which checkpoint: its run, step and number of parts. Ordered by age, the oldest first."""

    run: str
    step: int
    parts: int

    def __str__(self) -> str:
        return f"{self.run}/step-{self.step:012d}-of-{self.parts}"

    @classmethod
    def read(cls, run: str, folder: str) -> Self | None:
        found = _STEP.fullmatch(folder)
        return cls(run, int(found[1]), int(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints stay: the ``last`` complete ones, and of older ones those of steps that ``every`` divides."""

    last: int = 3
    every: int | None = None

    def __post_init__(self) -> None:
        if self.last < 1 or (self.every is not None and self.every < 1):
            raise UsageError(f"Keep(last={self.last}, every={self.every}): both must be at least 1; the last one stays")

    def doomed(
        self, names: Sequence[Name], torn: Callable[[Name], bool], complete: Callable[[Name], bool]
    ) -> Iterator[Name]:
        """What may go: all beyond the ``last`` complete ones, and torn ones that are older than a complete one.

        What is neither torn nor complete is damaged: it counts for nothing, and stays until it is old, as perhaps its
        place only could not be read just now.
        """
        found = 0
        for name in sorted(names, reverse=True):
            if torn(name):
                if found:
                    yield name
            elif found >= self.last:
                if not self.every or name.step % self.every:
                    yield name
            elif complete(name):
                found += 1


KEEP: Final = Keep()
