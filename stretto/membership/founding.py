"""Who has come before the first view: numbers those that have none, and says what is wrong with who does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from stretto.membership.compose import named
from stretto.membership.messages import FOUNDER, UNNUMBERED, Hello, Seat


@dataclass(slots=True)
class Founding:
    """The roll of the first view of ``size`` agents, by uid. A place whose agent goes is free again."""

    size: int
    here: dict[int, Seat] = field(default_factory=dict)

    def objection(self, hello: Hello) -> str | None:
        """Why this one cannot enter."""
        label, who = hello.seat.label, named(hello.seat.label)
        if hello.size != self.size:
            return f"{who} expects {hello.size} agents and the coordinator {self.size}; start all with the same number"
        if label >= self.size or label == FOUNDER:
            return f"{who} is not one of {self.size}; ranks are 0 to {self.size - 1}"
        for other in self.here.values():
            if label != UNNUMBERED and other.label == label and other.uid != hello.seat.uid:
                return taken(other)
        return None

    def missing(self) -> tuple[int, ...]:
        """Labels that have not come; agents without one count as the lowest free ones."""
        free = self._free()
        return tuple(free[len(self.here) - (self.size - len(free)) :])

    def complete(self) -> list[Seat] | None:
        """Everybody, numbered, once all are here."""
        if len(self.here) < self.size:
            return None
        free = iter(self._free())
        return [replace(seat, label=next(free)) if seat.label == UNNUMBERED else seat for seat in self.here.values()]

    def _free(self) -> list[int]:
        labels = {seat.label for seat in self.here.values()}
        return [label for label in range(self.size) if label not in labels]


def taken(other: Seat) -> str:
    return f"there is an agent {other.label} already (process {other.pid}); give every agent its own rank"
