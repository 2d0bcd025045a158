"""What a storm did to a training: pure functions from the agents' traces, and from what was done to them, to numbers.

All times are of one monotonic clock: a laboratory's hosts are on one machine. A *deed* is a fault as it happened. A
step is the commit of a fence round; others (a mean, a broadcast) count as progress, but not as steps.

An agent is *living* except from a kill until its process has been started again, and while it is stopped or cut off.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from msgspec import Struct

from stretto.lab.faults import COORDINATOR, Kind

GRACE: Final = 5.0
"""Seconds after a fault is over in which suspicion of its victims, or by them, is no false alarm."""
WATCHED: Final = 10.0
"""Seconds after the coordinator's end in which a pause is put down to it."""


class Deed(Struct, frozen=True, kw_only=True):
    """A fault as it happened. ``ended`` is when a victim's process was there again, went on, or was connected again."""

    kind: Kind
    labels: tuple[int, ...]
    began: float
    ended: float


class Commit(Struct, frozen=True, kw_only=True):
    """A round that an agent finished; ``contributors`` are labels."""

    agent: int
    time: float
    round: int
    fence: bool
    view: int
    contributors: frozenset[int]


class Aftermath(Struct, frozen=True, kw_only=True):
    """What followed a deed, in seconds; null where it did not.

    Attributes:
        next_commit: from a kill until the others had finished a step in a view without the process that was killed.
            That is any step where it had not come back from the deed before: nobody waits for it.
        back: until the victim itself had finished a round to which it contributed; from a kill, else from the end of
            the deed. Null as well where it was hit again before.
        noticed: from the deed until another agent suspected the victim.
        pause: the longest time between two rounds around it.
    """

    deed: Deed
    next_commit: float | None = None
    back: float | None = None
    noticed: float | None = None
    pause: float | None = None


class Account(Struct, frozen=True, kw_only=True):
    """The whole storm.

    Attributes:
        steps: committed.
        taking_part: mean over the steps: the share of the living that contributed.
        living: mean over time: the share of all agents that was living.
        calm_rate, rate: contributions to steps a second, of all agents, before the storm and in it.
        throughput: the rate, of what the calm one and the living share would give.
        false_alarms: suspicions without a cause.
        torn: rounds that two agents finished with different contributors; a broken promise.
    """

    aftermaths: list[Aftermath]
    steps: int
    taking_part: float
    living: float
    calm_rate: float
    rate: float
    throughput: float
    false_alarms: list[str]
    torn: list[int]


def commits(events: Iterable[dict[str, Any]]) -> list[Commit]:
    """The commits of a trace, by time."""
    found = [
        Commit(
            agent=e["agent"],
            time=e["time"],
            round=e["round"],
            fence=e["fence"],
            view=e["view"],
            contributors=frozenset(e["contributors"]),
        )
        for e in events
        if e["event"] == "commit"
    ]
    return sorted(found, key=lambda c: c.time)


def tell(
    events: Sequence[dict[str, Any]], deeds: Sequence[Deed], *, agents: int, calm: tuple[float, float], until: float
) -> Account:
    """The account of a storm.

    Args:
        agents: labels are 0 to agents - 1.
        calm: from when to when nothing was done to anybody: what throughput is compared with. The storm follows.
        until: its end.
    """
    done = commits(events)
    stormy = [c for c in firsts(done) if c.fence and calm[1] <= c.time < until]
    reference = [c for c in firsts(done) if c.fence and calm[0] <= c.time < calm[1]]
    alive = mean_living(deeds, agents, calm[1], until)
    calm_rate = _contributions(reference) / (calm[1] - calm[0])
    rate = _contributions(stormy) / (until - calm[1])
    return Account(
        aftermaths=[aftermath(deed, done, events, again=again(deed, deeds)) for deed in deeds],
        steps=len(stormy),
        taking_part=taking_part(stormy, deeds, agents),
        living=alive,
        calm_rate=calm_rate,
        rate=rate,
        throughput=rate / (calm_rate * alive) if calm_rate and alive else 0.0,
        false_alarms=list(false_alarms((e for e in events if e["time"] < until), deeds)),
        torn=torn(done),
    )


def firsts(done: Iterable[Commit]) -> Iterator[Commit]:
    """Of every round the commit that came first."""
    seen: set[int] = set()
    for commit in done:
        if commit.round not in seen:
            seen.add(commit.round)
            yield commit


def torn(done: Iterable[Commit]) -> list[int]:
    contributors: dict[int, set[frozenset[int]]] = {}
    for commit in done:
        contributors.setdefault(commit.round, set()).add(commit.contributors)
    return sorted(number for number, sets in contributors.items() if len(sets) > 1)


def aftermath(
    deed: Deed, done: Sequence[Commit], events: Iterable[dict[str, Any]], *, again: float = math.inf
) -> Aftermath:
    """What followed one deed; ``done`` by time. ``again``: when one of its victims was hit by the next."""
    at = bisect.bisect_right(done, deed.began, key=lambda c: c.time)
    view = last_view(deed, events)
    renewed = next((c.time for c in done[at:] if c.fence and c.view > view and c.agent not in deed.labels), None)
    watched = deed.began + WATCHED if deed.kind in ("kill", "coordinator") else deed.ended + GRACE
    returned = (
        c.time for c in done[at:] if c.agent in c.contributors.intersection(deed.labels) and deed.ended < c.time < again
    )
    return Aftermath(
        deed=deed,
        next_commit=_since(renewed, deed.began) if deed.kind == "kill" else None,
        back=_since(next(returned, None), deed.began if deed.kind == "kill" else deed.ended),
        noticed=_since(min(_suspicions(deed, events), default=None), deed.began),
        pause=longest_pause(done, deed.began, min(watched, renewed or watched)),
    )


def again(deed: Deed, deeds: Iterable[Deed]) -> float:
    """When one of its victims was hit next."""
    later = (d.began for d in deeds if d.began > deed.began and not set(d.labels).isdisjoint(deed.labels))
    return min(later, default=math.inf)


def last_view(deed: Deed, events: Iterable[dict[str, Any]]) -> int:
    """The number of the last view in which the others may wait for a victim; 0: in none.

    Before a deed has ended its victim cannot have come back, so these are views with the victim as it was hit. A
    coordinator is in all.
    """
    views = (e for e in events if e["event"] == "view" and e["time"] <= deed.ended)
    with_it = (e for e in views if deed.kind == "coordinator" or not set(e["labels"]).isdisjoint(deed.labels))
    return max((e["number"] for e in with_it), default=0)


def _suspicions(deed: Deed, events: Iterable[dict[str, Any]]) -> Iterator[float]:
    """When others suspected its victims, or had gone on without them: a coordinator's suspicions are in no trace."""
    for e in events:
        if e["agent"] not in deed.labels and deed.began < e["time"] < deed.ended + GRACE:
            of_it = e["event"] == "suspect" and e["peer"] in deed.labels
            without = e["event"] == "view" and not set(deed.labels).issubset(e["labels"])
            if of_it or without:
                yield e["time"]


def longest_pause(done: Sequence[Commit], since: float, until: float) -> float | None:
    """Seconds between two rounds that follow each other, of which the second ended after ``since``, the first before
    ``until``."""
    times = [c.time for c in firsts(done)]
    pauses = (b - a for a, b in itertools.pairwise(times) if b > since and a < until)
    return max(pauses, default=None)


def taking_part(steps: Sequence[Commit], deeds: Sequence[Deed], agents: int) -> float:
    """Mean over ``steps`` of the share of the living that contributed."""
    shares = []
    for step in steps:
        living = set(range(agents)) - victims(deeds, step.time)
        if living:
            shares.append(len(step.contributors & living) / len(living))
    return sum(shares) / len(shares) if shares else 0.0


def victims(deeds: Iterable[Deed], at: float) -> set[int]:
    """Who is not living at a time."""
    return {label for deed in deeds if deed.began <= at < deed.ended for label in deed.labels}


def mean_living(deeds: Sequence[Deed], agents: int, since: float, until: float) -> float:
    """The mean over time of the share that lives."""
    edges = sorted({since, until} | {t for d in deeds for t in (d.began, d.ended) if since < t < until})
    lived = sum((b - a) * len(set(range(agents)) - victims(deeds, a)) for a, b in itertools.pairwise(edges))
    return lived / (agents * (until - since))


def false_alarms(events: Iterable[dict[str, Any]], deeds: Sequence[Deed]) -> Iterator[str]:
    """Suspicions of somebody to whom nothing had been done, by somebody to whom nothing had been done either; and views
    that went on without somebody to whom nothing had been done."""
    views: dict[int, set[int]] = {}
    for e in sorted(events, key=lambda e: e["time"]):
        excused = {label for d in deeds if d.began <= e["time"] < d.ended + GRACE for label in d.labels}
        if 0 in excused:
            excused.add(COORDINATOR)  # it lives on the first host too
        if e["event"] == "suspect" and e["what"] != "slow" and not {e["agent"], e["peer"]} & excused:
            yield f"agent {e['agent']} suspected {e['peer']} ({e['what']}: {e['why']})"
        elif e["event"] == "view" and e["number"] not in views:
            views[e["number"]] = set(e["labels"])
            for label in sorted(views.get(e["number"] - 1, set()) - views[e["number"]] - excused):
                yield f"view {e['number']} went on without agent {label} ({e['why']})"


def _contributions(steps: Iterable[Commit]) -> int:
    return sum(len(step.contributors) for step in steps)


def _since(time: float | None, began: float) -> float | None:
    return None if time is None else time - began
