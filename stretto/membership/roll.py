"""Who has come and who is gone: a state machine without I/O or clock. Events in, what to say to whom out.

Agents are known by a key that the caller chooses (a connection's number). Membership is fixed: the epoch begins when
``size`` agents have come. Until then a seat whose agent dies is free again; afterwards the others are told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from stretto.core import Network
from stretto.membership.messages import Denied, Join, Left, Lost, Message, Seat, Waiting, Welcome

FIRST_EPOCH: Final = 1
UNKNOWN: Final = Network()

Say: TypeAlias = list[tuple[int, Message]]
"""What to send, to which keys."""


@dataclass(frozen=True, slots=True)
class _Entrant:
    rank: int | None
    seat: Seat


@dataclass(slots=True)
class Roll:
    """The roll of one epoch of ``size`` agents."""

    size: int
    network: Network = UNKNOWN
    epoch: int | None = None
    _here: dict[int, _Entrant] = field(default_factory=dict)
    _ranks: dict[int, int] = field(default_factory=dict)

    def join(self, key: int, rank: int | None, request: Join) -> Say:
        """An agent asks to enter, with its rank or for the lowest one that is free once all have come."""
        why = self._objection(rank, request)
        if why:
            return [(key, Denied(why))]
        self._here[key] = _Entrant(rank, Seat(request.host, request.pid, request.addresses))
        return self._begin() if len(self._here) == self.size else [(key, Waiting(self.missing()))]

    def leave(self, key: int) -> Say:
        """An agent says that it goes."""
        rank = self._gone(key)
        return [] if rank is None else self._tell(Left(rank))

    def lose(self, key: int, why: str) -> Say:
        """An agent's connection ended without a word."""
        rank = self._gone(key)
        return [] if rank is None else self._tell(Lost(rank, why))

    def remind(self) -> Say:
        """Tell those who wait whom they wait for."""
        return self._tell(Waiting(self.missing())) if self.epoch is None else []

    def missing(self) -> tuple[int, ...]:
        """Ranks that have not come. Agents without a rank of their own count as the lowest free ones."""
        if self.epoch is not None:
            return ()
        free = self._free()
        return tuple(free[len(self._here) - (self.size - len(free)) :])

    def present(self) -> int:
        """How many are here now."""
        return len(self._here)

    def _objection(self, rank: int | None, request: Join) -> str | None:
        who = "an agent" if rank is None else f"agent {rank}"
        if request.size != self.size:
            return (
                f"{who} expects {request.size} agents and the coordinator {self.size}; start all with the same number"
            )
        if self.epoch is not None:
            return f"{who} comes too late: epoch {self.epoch} has begun with {self.size} agents; start a new run"
        if rank is not None and rank >= self.size:
            return f"{who} is not one of {self.size}; ranks are 0 to {self.size - 1}"
        for other in self._here.values():
            if rank is not None and other.rank == rank:
                return f"there is an agent {rank} already (process {other.seat.pid}); give every agent its own rank"
        return None

    def _free(self) -> list[int]:
        taken = {e.rank for e in self._here.values()}
        return [rank for rank in range(self.size) if rank not in taken]

    def _begin(self) -> Say:
        free = iter(self._free())
        self.epoch = FIRST_EPOCH
        self._ranks = {key: next(free) if e.rank is None else e.rank for key, e in self._here.items()}
        members = tuple(self._here[key].seat for key in sorted(self._ranks, key=self._ranks.__getitem__))
        delay, rate = self.network.delay, self.network.rate
        return [(key, Welcome(self.epoch, rank, members, delay, rate)) for key, rank in self._ranks.items()]

    def _gone(self, key: int) -> int | None:
        self._here.pop(key, None)
        return self._ranks.pop(key, None)

    def _tell(self, message: Message) -> Say:
        return [(key, message) for key in self._here]
