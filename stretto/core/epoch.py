"""Who trains together, and for how long nothing of that changes."""

from __future__ import annotations

from dataclasses import dataclass

UNNAMED = -3
FIRST_SERVER = 1 << 16
"""Server k of a launch has the label ``FIRST_SERVER + k``; below are those of agents."""


def called(label: int) -> str:
    """A process by its label, in words.

    >>> called(3), called(FIRST_SERVER)
    ('agent 3', 'server 0')
    """
    return f"agent {label}" if label < FIRST_SERVER else f"server {label - FIRST_SERVER}"


@dataclass(frozen=True, slots=True)
class Member:
    """One process as the others know it. ``host`` names its machine; addresses are tried in order.

    ``uid`` names this life of it, and ``label`` is its number in the launch, by which people know it and which a
    restart keeps; by default both follow from ``rank``. A member without the model (``healed`` is false) is given it.
    One that ``serves`` holds parameters for the agents, and trains nothing.
    """

    rank: int
    host: str
    pid: int
    addresses: tuple[str, ...]
    uid: int = 0
    label: int = UNNAMED
    healed: bool = True
    serves: bool = False

    def __post_init__(self) -> None:
        if not self.uid:
            object.__setattr__(self, "uid", self.rank + 1)
        if self.label == UNNAMED:
            object.__setattr__(self, "label", self.rank)

    @property
    def name(self) -> str:
        return called(self.label)


@dataclass(frozen=True, slots=True)
class Epoch:
    """A span of steps inside which nothing changes but the weights. Servers come after the agents."""

    number: int
    members: tuple[Member, ...]

    @property
    def agents(self) -> Epoch:
        """The same without its servers: what who trains knows of it."""
        if not self.members or not self.members[-1].serves:
            return self
        return Epoch(self.number, tuple(m for m in self.members if not m.serves))

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def hosts(self) -> tuple[int, ...]:
        """Machines numbered in order of first appearance, by rank."""
        seen: dict[str, int] = {}
        return tuple(seen.setdefault(m.host, len(seen)) for m in self.members)

    @property
    def uids(self) -> tuple[int, ...]:
        return tuple(m.uid for m in self.members)

    @property
    def labels(self) -> tuple[int, ...]:
        return tuple(m.label for m in self.members)
