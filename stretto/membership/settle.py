"""What a new view makes of the round that the old one left unfinished: share its results, or redo it.

Theory of operation. Rounds are sequential at every trainer, and a round that finished at anybody had everybody's part
in it. So the reports of a view differ by at most one round, and whoever reports a later one has finished all buckets of
the lowest, unless it has come in after that. If together they have every bucket of the lowest round, those who lack one
are given it; else the round is redone as a whole among the members of the new view, so that a step is the mean over the
samples of those who took part. Everybody computes the same from the view alone: nothing is negotiated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stretto.membership.messages import Report, View


@dataclass(frozen=True, slots=True)
class Settlement:
    """How round ``round`` ends in the new view.

    share: every bucket is somewhere; else the round is redone.
    holders: the lowest rank that has a bucket, by bucket; none when it is redone.
    lacking: the ranks that lack a bucket, by bucket.
    ranks: who takes part: the old members, and the newcomers where it is their first round.
    """

    round: int
    share: bool
    holders: tuple[int, ...]
    lacking: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]


def settle(view: View, buckets: int = 0) -> Settlement | None:
    """The settlement of ``view`` among its agents; None where none has begun the lowest round: there is nothing to do.

    Args:
        buckets: of the round, where one knows it. A report has none of a round that its trainer has not begun.
    """
    reports = view.trained
    if not reports:
        return None
    lowest = min(report.round for report in reports)
    concerned = [report for report in reports if report.since <= lowest]
    if not any(report.begun or report.round > lowest for report in concerned):
        return None
    places = {seat.uid: rank for rank, seat in enumerate(view.agents)}
    old = {places[report.uid]: report for report in concerned}
    owners = _owners(old, lowest, buckets)
    ranks = tuple(range(len(places))) if lowest >= view.entry else tuple(sorted(old))
    if _whole(owners, concerned, lowest):
        lacking = tuple(tuple(rank for rank in ranks if rank not in owner) for owner in owners)
        return Settlement(lowest, True, tuple(min(owner) for owner in owners), lacking, ranks)
    return Settlement(lowest, False, (), (), ranks)


def together(reports: Sequence[Report]) -> Sequence[Report]:
    """Of old members, those that can go on in one view.

    Where the lowest round is redone, whoever has come in after it cannot: it waits in a later one, or was given a state
    in which this one ended otherwise, by some who are lost. It comes in again; but whoever has the model stays.
    """
    lowest = min((report.round for report in reports), default=0)
    concerned = [report for report in reports if report.since <= lowest]
    if len(concerned) == len(reports) or _whole(_owners(dict(enumerate(concerned)), lowest, 0), concerned, lowest):
        return reports
    return concerned if any(r.healed for r in concerned) else [r for r in reports if r.since > lowest]


def admits(reports: Iterable[Report]) -> bool:
    """May newcomers enter? Only where the first of the rounds ahead begins with a batch of its own, and is not over.

    A round whose results are all here is shared by those who took part; nobody can take part in it any more.
    """
    reports = tuple(reports)
    latest = [report for report in reports if report.round == entry(reports)]
    owners = _owners(dict(enumerate(latest)), entry(reports), 0)
    over = bool(owners) and all(owners)
    return not over and any(report.fence for report in latest)


def entry(reports: Iterable[Report]) -> int:
    """The round from which the new view's newcomers take part, and the new deal of samples holds."""
    return max((report.round for report in reports), default=0)


def _whole(owners: Sequence[set[int]], concerned: Iterable[Report], lowest: int) -> bool:
    """Is every bucket of round ``lowest`` somewhere?"""
    return all(owners) and any(report.round > lowest or report.done for report in concerned)


def _owners(reports: Mapping[int, Report], lowest: int, buckets: int) -> list[set[int]]:
    """The ranks that have each bucket of round ``lowest``, of the ``reports`` by rank."""
    count = max([buckets, *(len(report.done) for report in reports.values() if report.round == lowest)])
    return [{k for k, r in reports.items() if r.round > lowest or _has(r.done, bucket)} for bucket in range(count)]


def _has(done: Sequence[int], bucket: int) -> bool:
    return bucket < len(done) and done[bucket] != 0
