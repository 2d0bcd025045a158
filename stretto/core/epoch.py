"""Who trains together, and for how long nothing of that changes."""

from __future__ import annotations

from dataclasses import dataclass

UNNAMED = -3


@dataclass(frozen=True, slots=True)
class Member:
    """One agent as the others know it. ``host`` names its machine; addresses are tried in order.

    ``uid`` names this life of it, and ``label`` is its number in the launch, by which people know it and which a
    restart keeps; by default both follow from ``rank``. A member without the model (``healed`` is false) is given it.
    """

    rank: int
    host: str
    pid: int
    addresses: tuple[str, ...]
    uid: int = 0
    label: int = UNNAMED
    healed: bool = True

    def __post_init__(self) -> None:
        if not self.uid:
            object.__setattr__(self, "uid", self.rank + 1)
        if self.label == UNNAMED:
            object.__setattr__(self, "label", self.rank)


@dataclass(frozen=True, slots=True)
class Epoch:
    """A span of steps inside which nothing changes but the weights."""

    number: int
    members: tuple[Member, ...]

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
