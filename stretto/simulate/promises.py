"""What must hold in every simulated run: of the views that are decided, and of the steps that are applied."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from stretto.membership.messages import Report, View, Vote
from stretto.membership.votes import majority

if TYPE_CHECKING:
    from stretto.simulate.process import Process


class Broken(AssertionError):
    """A promise does not hold."""


class Promises:
    """All that was decided, reported and accepted in a run, by whomever."""

    def __init__(self) -> None:
        self.decided: dict[int, View] = {}
        self.leavers: set[int] = set()
        self._reports: defaultdict[tuple[int, int], set[tuple[object, ...]]] = defaultdict(set)
        self._accepted: dict[tuple[int, int], View] = {}

    def note_report(self, number: int, report: Report) -> None:
        """Who is healed only then reports twice."""
        self._reports[number, report.uid].add(_said(report))

    def note_vote(self, vote: Vote | None) -> None:
        if vote is not None and vote.accepted is not None and vote.view is not None:
            self._accepted[vote.number, vote.uid] = vote.view

    def check_install(self, agent: Process, view: View) -> None:
        """There is one view of a number, its members are those who reported, and a majority wanted it."""
        if self.decided.setdefault(view.number, view) != view:
            raise Broken(f"{agent} is told another view {view.number} than others")
        if view.number <= agent.number:
            raise Broken(f"{agent} goes back from view {agent.number} to view {view.number}")
        if view.number == 1:
            return
        for report in view.reports:
            if _said(report) not in self._reports[view.number - 1, report.uid]:
                raise Broken(f"view {view.number} has a report that agent {report.uid} did not make")
        if view.number - 1 in self.decided:
            self._check_successor(self.decided[view.number - 1], view)
        rounds = [report.round for report in view.trained]
        if max(rounds) - min(rounds) > 1:
            raise Broken(f"rounds {sorted(rounds)} lie apart in view {view.number}")

    def _check_successor(self, base: View, view: View) -> None:
        reported, old = {report.uid for report in view.reports}, {seat.uid for seat in base.seats}
        if {seat.uid for seat in view.seats} & old != reported:
            raise Broken(f"view {view.number} keeps members that did not report")
        agreed = [u for u in base.voters if self._accepted.get((view.number, u)) == view or u in self.leavers]
        if len(agreed) < majority(base.voters):
            raise Broken(f"view {view.number} was accepted by {agreed} of {base.voters}")


def _said(report: Report) -> tuple[object, ...]:
    return report.round, report.begun, report.done, report.fence, report.healed


def check_step(agent: Process, round: int, others: list[Process]) -> None:
    """Members of one view that have both applied a step have applied the same, bit for bit."""
    for other in others:
        same_view = other.alive and other.number == agent.number and not other.out
        if same_view and other.places.get(round, agent.places[round]) != agent.places[round]:
            raise Broken(f"{agent} and {other} are in view {agent.number} and applied different steps in round {round}")
