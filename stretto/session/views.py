"""What a view means for a session: its epoch, and who has a part in which round."""

from __future__ import annotations

from typing import Any, Final

from stretto.core import FIRST_SERVER, Epoch, Member
from stretto.membership.messages import View
from stretto.session.rounds import Parts

FIRST: Final = 1
"""The view with which a run begins: all its members are healed, their weights are the first one's."""


def epoch_of(view: View) -> Epoch:
    """The epoch that a view begins, of all its members; trainers are told of its ``agents``."""
    return Epoch(
        view.number,
        tuple(
            Member(rank, s.host, s.pid, s.addresses, s.uid, s.label, s.healed, s.serves)
            for rank, s in enumerate(view.seats)
        ),
    )


def told(view: View) -> dict[str, Any]:
    """What the trace is told of a view that was entered."""
    servers = [seat.label - FIRST_SERVER for seat in view.seats if seat.serves]
    labels = [seat.label for seat in view.agents]
    return {"number": view.number, "labels": labels, "servers": servers, "entry": view.entry, "why": view.why}


def rank_in(view: View, uid: int) -> int | None:
    return next((rank for rank, seat in enumerate(view.seats) if seat.uid == uid), None)


def entry_of(view: View, uid: int) -> int:
    """The first round in which a member takes part, with nothing of its own; 0 for those of the first view."""
    since = next((report.since for report in view.reports if report.uid == uid), None)
    if since is not None:
        return since
    return 0 if view.number == FIRST else view.entry


def parts(view: View, number: int) -> Parts:
    """Who has a part of its own in round ``number``, of all who take part."""
    return Parts(tuple(s.uid for s in view.agents if entry_of(view, s.uid) < number), len(view.agents))


def newcomers(view: View, number: int) -> list[int]:
    """Ranks that get the state as it was before round ``number``."""
    return [r for r, seat in enumerate(view.agents) if not seat.healed and entry_of(view, seat.uid) == number]


def donors(view: View, rank: int) -> list[int]:
    """Ranks that have the state, for ``rank``, which has not."""
    return [r for r, seat in enumerate(view.agents) if seat.healed and r != rank]
