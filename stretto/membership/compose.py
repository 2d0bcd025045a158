"""The next view, from the last one and what its members reported: a pure function, to be read and searched."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec.structs import replace

from stretto.core import FIRST_SERVER, Network, called
from stretto.membership.messages import FOUNDER, STORE, Report, Seat, View
from stretto.membership.settle import admits, entry, together


def nowhere(founder: Seat, network: Network, *, store: bool = False) -> View:
    """View 0, in which nobody is yet and the founder alone has a vote, or the store, then and for good."""
    return View(0, (), (STORE if store else founder.uid,), founder.uid, (), 0, "", network.delay, network.rate, founder)


def first(base: View, seats: Sequence[Seat]) -> View:
    """View 1: all that were waited for, by label."""
    ordered = _ranked(sorted((replace(seat, healed=True) for seat in seats), key=lambda seat: seat.label))
    agents = sum(not seat.serves for seat in ordered)
    servers = f", and {len(ordered) - agents} to serve them" if agents < len(ordered) else ""
    return replace(
        base,
        number=1,
        seats=ordered,
        voters=_voters(base, ordered, base.founder),
        why=(f"all {agents} agents have come" if agents > 1 else "the agent has come") + servers,
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
    """The view after ``base``: old members that reported and go on together, then ``newcomers``.

    Servers come after the agents, and at any time; new agents where the reports admit them.

    Args:
        reports: of the old members that are still well, by uid.
        founder: does the coordinator still take part?

    None where no agent of them has the model: there is nothing to go on with.
    """
    agents = [reports[seat.uid] for seat in base.seats if seat.uid in reports and not seat.serves]
    trained = tuple(together(agents))
    dropped = {report.uid for report in agents} - {report.uid for report in trained}
    stay = tuple(
        replace(seat, healed=reports[seat.uid].healed)
        for seat in base.seats
        if seat.uid in reports and seat.uid not in dropped
    )
    if not any(seat.healed and not seat.serves for seat in stay):
        return None
    said = tuple(reports[seat.uid] for seat in stay)
    opens = admits(trained)
    come = tuple(replace(seat, healed=seat.serves) for seat in newcomers if seat.serves or opens)
    seats = _ranked(stay + come)
    kept = base.founder if founder else None
    return View(
        base.number + 1,
        seats,
        _voters(base, seats, kept),
        kept.uid if kept is not None else said[0].uid if proposer in dropped else proposer,
        said,
        entry(trained),
        why,
        said[0].delay,
        said[0].rate,
        kept,
    )


def lowest_free(labels: Collection[int], *, serves: bool = False) -> int:
    """The lowest label of an agent, or of a server, that nobody has."""
    least = FIRST_SERVER if serves else 0
    return next(label for label in range(least, least + len(labels) + 1) if label not in labels)


def named(label: int, *, serves: bool = False) -> str:
    if label == FOUNDER:
        return "the coordinator"
    return called(label) if label >= 0 else "a server" if serves else "an agent"


def listed(labels: Collection[int]) -> str:
    """Labels in words: ``agents 1, 3 and the coordinator``."""
    agents = sorted(label for label in labels if 0 <= label < FIRST_SERVER)
    servers = sorted(label - FIRST_SERVER for label in labels if label >= FIRST_SERVER)
    words = [_numbered("agent", agents)] if agents else []
    words += [_numbered("server", servers)] if servers else []
    return " and ".join(words + (["the coordinator"] if FOUNDER in labels else []))


def _numbered(what: str, numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"{what}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:8]))}{more}"


def _ranked(seats: Iterable[Seat]) -> tuple[Seat, ...]:
    """In their order, but the servers after the agents."""
    return tuple(sorted(seats, key=lambda seat: seat.serves))


def _voters(base: View, seats: Sequence[Seat], founder: Seat | None) -> tuple[int, ...]:
    """The store, where there is one; else all members, and the founder where it breaks ties: one alone asks nobody."""
    if STORE in base.voters:
        return (STORE,)
    uids = tuple(seat.uid for seat in seats)
    return (*uids, founder.uid) if founder is not None and len(seats) > 1 else uids
