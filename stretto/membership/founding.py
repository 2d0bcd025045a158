"""Who has come before the first view: numbers those that have none, and says what is wrong with who does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from stretto.core import FIRST_SERVER
from stretto.membership.compose import listed, named
from stretto.membership.messages import FOUNDER, UNNUMBERED, Hello, Seat


@dataclass(slots=True)
class Founding:
    """The roll of the first view of ``size`` agents and at least ``servers``, by uid.

    A place whose process goes is free again.
    """

    size: int
    servers: int = 0
    here: dict[int, Seat] = field(default_factory=dict)

    def objection(self, hello: Hello) -> str | None:
        """Why this one cannot enter."""
        label, serves = hello.seat.label, hello.seat.serves
        who = named(label, serves=serves)
        if hello.size != self.size:
            return f"{who} expects {hello.size} agents and the coordinator {self.size}; start all with the same number"
        if not serves and (label >= self.size or label == FOUNDER):
            return f"{who} is not one of {self.size}; ranks are 0 to {self.size - 1}"
        for other in self.here.values():
            if label != UNNUMBERED and other.label == label and other.uid != hello.seat.uid:
                return taken(other)
        if not serves and hello.seat.uid not in self.here and len(self._here(serves=False)) == self.size:
            return f"all {self.size} agents are here, and wait for {listed(self.missing())}; come after them"
        return None

    def missing(self) -> tuple[int, ...]:
        """Labels that have not come; processes without one count as the lowest free ones."""
        return (*self._missing(serves=False), *self._missing(serves=True))

    def complete(self) -> list[Seat] | None:
        """Everybody, numbered, once all are here."""
        if self.missing():
            return None
        free = {serves: iter(self._free(serves=serves)) for serves in (False, True)}
        return [
            replace(seat, label=next(free[seat.serves])) if seat.label == UNNUMBERED else seat
            for seat in self.here.values()
        ]

    def _missing(self, *, serves: bool) -> list[int]:
        unnumbered = sum(seat.label == UNNUMBERED for seat in self._here(serves=serves))
        return [label for label in self._free(serves=serves)[unnumbered:] if label in self._awaited(serves=serves)]

    def _free(self, *, serves: bool) -> list[int]:
        """Labels that nobody has: those that are awaited, and enough beyond for who comes unasked."""
        here, awaited = self._here(serves=serves), self._awaited(serves=serves)
        labels = {seat.label for seat in here}
        return [label for label in range(awaited.start, awaited.stop + len(here)) if label not in labels]

    def _awaited(self, *, serves: bool) -> range:
        return range(FIRST_SERVER, FIRST_SERVER + self.servers) if serves else range(self.size)

    def _here(self, *, serves: bool) -> list[Seat]:
        return [seat for seat in self.here.values() if seat.serves == serves]


def taken(other: Seat) -> str:
    a, what, number = ("a", "server", "number") if other.serves else ("an", "agent", "rank")
    return f"there is {a} {named(other.label)} already (process {other.pid}); give every {what} its own {number}"
