"""What the explorer's worlds are made of: faults, and toys of processes, couriers and connections."""

from __future__ import annotations

from dataclasses import dataclass, field

from stretto.membership.messages import FOUNDER, Hello, Report, Seat, View, Vote
from stretto.membership.views import Views

BUCKETS = 2
Result = tuple[int, frozenset[int]]
"""A finished bucket: in which view, of whom."""


@dataclass(frozen=True, slots=True)
class Fault:
    at: float
    kind: str
    what: tuple[int, ...]
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.at:7.3f} {self.kind} {' '.join(map(str, self.what))} {self.seconds:.2f}".rstrip()


@dataclass(slots=True)
class Courier:
    """A trainer and its courier, as toys."""

    view: View | None = None
    round: int = 0
    begun: bool = False
    done: dict[int, Result] = field(default_factory=dict)
    healed: bool = True
    frozen: bool = False
    hold: bool = False
    held: bool = False
    settling: bool = False
    out: bool = False
    history: dict[int, tuple[Result, ...]] = field(default_factory=dict)

    @property
    def fence(self) -> bool:
        return self.round % 3 == 0

    def report(self, uid: int) -> Report:
        done = bytes(bucket in self.done for bucket in range(BUCKETS)) if self.begun else b""
        return Report(uid, self.round, self.begun, done, self.begun and self.fence, self.healed, "model")


@dataclass(slots=True)
class Node:
    uid: int
    label: int
    vote: Vote | None = None
    views: Views | None = None
    courier: Courier = field(default_factory=Courier)
    alive: bool = True
    stopped_until: float = 0.0
    tries: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        """Of the view that its courier is in; 0: it was in none."""
        return self.courier.view.number if self.courier.view is not None else 0

    def __str__(self) -> str:
        return f"{'founder' if self.label == FOUNDER else f'agent {self.label}'}({self.uid})"


@dataclass(slots=True)
class Wire:
    """One control connection; ``at`` keeps the order of what each end sends."""

    ends: tuple[int, int]
    up: bool = True
    at: dict[int, float] = field(default_factory=dict)


def seat_of(node: Node) -> Seat:
    return Seat(node.uid, node.label, "here", node.uid, (), (f"at:{node.uid}",), node.courier.healed)


def first_word(node: Node, size: int) -> Hello:
    return Hello(seat_of(node), size, 0, node.vote)
