"""Medians and worsts of what followed the faults of each kind."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from stretto.lab.faults import KINDS
from stretto.lab.story import Aftermath


class Summary(Struct, frozen=True, kw_only=True):
    """One kind of fault: how many, and the median and the worst of what followed, in seconds; null: never."""

    kind: str
    count: int
    measures: dict[str, tuple[float, float] | None]
    missing: dict[str, int]


MEASURES: Final = {
    "kill": ("next_commit", "back"),
    "coordinator": ("pause",),
    "stop": ("pause", "back"),
    "cut": ("noticed", "pause", "back"),
}


def summaries(aftermaths: Sequence[Aftermath]) -> list[Summary]:
    """One for each kind that happened. ``missing`` counts what did not follow."""
    found = []
    for kind in KINDS:
        of_kind = [a for a in aftermaths if a.deed.kind == kind]
        if of_kind:
            values = {name: [getattr(a, name) for a in of_kind] for name in MEASURES[kind]}
            found.append(
                Summary(
                    kind=kind,
                    count=len(of_kind),
                    measures={name: spread(seen) for name, seen in values.items()},
                    missing={name: seen.count(None) for name, seen in values.items()},
                )
            )
    return found


def spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    """The median and the worst of what there is."""
    there = [v for v in values if v is not None]
    return (statistics.median(there), max(there)) if there else None
