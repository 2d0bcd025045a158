"""One agent as the launcher sees it: what it runs, its life at the moment, and what became of the earlier ones."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from stretto.core import FIRST_SERVER, called
from stretto.errors import NetworkError
from stretto.launch.lives import Lives
from stretto.launch.output import Held, Pipe
from stretto.launch.processes import Group

_LOST: Final[tuple[type[NetworkError], ...]] = (NetworkError, *NetworkError.__subclasses__())
_LOST_IT: Final = re.compile(rf"(?:[\w.]*\.)?(?:{'|'.join(kind.__name__ for kind in _LOST)})(?::|$)")


class End(Enum):
    """How a life ended."""

    WELL = "with exit code 0"
    KILLED = "by a signal"
    ALONE = "because it lost the others"
    FAILED = "because its script failed"


class Life:
    """One life: running, then lingering (its leader, the trainer, has ended), then gone."""

    def __init__(self, group: Group, prefix: str, now: float) -> None:
        self.group = group
        leader = group.leader
        self.out = Pipe(leader.stdout, prefix) if leader.stdout else None
        self.err = Pipe(leader.stderr, prefix) if leader.stderr else None
        self.held = Held()
        self.began_at = now
        self.ended_at = 0.0
        self.code: int | None = None
        self.end = End.WELL
        self.how = "has not ended"
        self.gone = False

    @property
    def pipes(self) -> list[Pipe]:
        return [pipe for pipe in (self.out, self.err) if pipe is not None]

    @property
    def running(self) -> bool:
        return self.code is None

    def ended(self, code: int, now: float) -> None:
        """The leader has ended, and what it wrote was read to the end. ``how`` says so of whoever it was."""
        self.code, self.ended_at = code, now
        self.how = f"ended with exit code {code}"
        if code < 0:
            self.end, self.how = End.KILLED, f"was killed by {signal.Signals(-code).name}"
        elif code > 0:
            error = self.held.error() or ""
            self.end = End.ALONE if _LOST_IT.match(error) else End.FAILED
            if self.end is End.ALONE:
                self.how = f"lost the others ({error})"


@dataclass(slots=True)
class Agent:
    """One agent of a launch, or server, through all its lives. ``due``: when it is started again."""

    label: int
    command: Sequence[str]
    environ: Mapping[str, str]
    life: Life
    lives: Lives
    due: float | None = None

    @property
    def name(self) -> str:
        return called(self.label)

    @property
    def serves(self) -> bool:
        return self.label >= FIRST_SERVER

    @property
    def running(self) -> bool:
        return self.life.running

    @property
    def finished(self) -> bool:
        return self.life.code == 0

    @property
    def over(self) -> bool:
        """Nothing is left of it, and nothing comes."""
        return self.life.gone and self.due is None
