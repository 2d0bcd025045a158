"""The next view, from the last one and what its members reported: a pure function, to be read and searched."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from msgspec.structs import replace

from stretto.core import Network
from stretto.membership.messages import FOUNDER, STORE, Report, Seat, View
from stretto.membership.settle import admits, entry, together


def nowhere(founder: Seat, network: Network, *, store: bool = False) -> View:
    """View 0, in which nobody is yet and the founder alone has a vote, or the store, then and for good."""
    return View(0, (), (STORE if store else founder.uid,), founder.uid, (), 0, "", network.delay, network.rate, founder)


def first(base: View, seats: Sequence[Seat]) -> View:
    """View 1: all that were waited for, by label."""
    ordered = tuple(sorted((replace(seat, healed=True) for seat in seats), key=lambda seat: seat.label))
    return replace(
        base,
        number=1,
        seats=ordered,
        voters=_voters(base, ordered, base.founder),
        why=f"all {len(ordered)} agents have come" if len(ordered) > 1 else "the agent has come",
    )


def following(
    base: View,
    reports: Mapping[int, Report],
    newcomers: Sequence[Seat],
    *,
    proposer: int,
    founder: bool,
    why: str,
) -> View | None:
    """The view after ``base``: old members that reported and go on together, then ``newcomers`` if these admit them.

    Args:
        reports: of the old members that are still well, by uid.
        founder: does the coordinator still take part?

    None where none of them has the model: there is nothing to go on with.
    """
    said = tuple(together([reports[seat.uid] for seat in base.seats if seat.uid in reports]))
    staying = {report.uid: report for report in said}
    stay = tuple(replace(seat, healed=staying[seat.uid].healed) for seat in base.seats if seat.uid in staying)
    if not any(seat.healed for seat in stay):
        return None
    come = tuple(replace(seat, healed=False) for seat in newcomers) if admits(said) else ()
    kept = base.founder if founder else None
    return View(
        base.number + 1,
        stay + come,
        _voters(base, stay + come, kept),
        kept.uid if kept is not None else proposer if proposer in staying else said[0].uid,
        said,
        entry(said),
        why,
        said[0].delay,
        said[0].rate,
        kept,
    )


def lowest_free(labels: Collection[int]) -> int:
    """The lowest label that nobody has."""
    return next(label for label in range(len(labels) + 1) if label not in labels)


def named(label: int) -> str:
    return "the coordinator" if label == FOUNDER else f"agent {label}" if label >= 0 else "an agent"


def listed(labels: Collection[int]) -> str:
    """Labels in words: ``agents 1, 3 and the coordinator``."""
    numbers = sorted(label for label in labels if label >= 0)
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    shown = ", ".join(map(str, numbers[:8])) + more
    words = [f"agent{'s' if len(numbers) > 1 else ''} {shown}"] if numbers else []
    return " and ".join(words + (["the coordinator"] if FOUNDER in labels else []))


def _voters(base: View, seats: Sequence[Seat], founder: Seat | None) -> tuple[int, ...]:
    """The store, where there is one; else all members, and the founder where it breaks ties: one alone asks nobody."""
    if STORE in base.voters:
        return (STORE,)
    uids = tuple(seat.uid for seat in seats)
    return (*uids, founder.uid) if founder is not None and len(seats) > 1 else uids
