"""Events and effects of the membership in few words."""

from __future__ import annotations

import dataclasses

import msgspec

from stretto.membership.messages import Ballot, Seat, View


def shown(what: object) -> str:
    """
    >>> shown((Ballot(3, 7), 1.5))
    '3.7, 1.5'
    """
    match what:
        case View():
            return f"view {what.number} of {[seat.uid for seat in what.seats]} led by {what.leader}"
        case Seat():
            return f"{what.uid}"
        case Ballot():
            return f"{what.turn}.{what.uid}"
        case tuple():
            return ", ".join(map(shown, what))
        case msgspec.Struct():
            return f"{type(what).__name__}({', '.join(shown(getattr(what, f)) for f in what.__struct_fields__)})"
        case _ if dataclasses.is_dataclass(what):
            return ", ".join(shown(getattr(what, f.name)) for f in dataclasses.fields(what))
        case _:
            return str(what)
