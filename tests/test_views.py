"""Views, settlements and votes: what holds whatever happens, searched from seeds; scripts are in membership/."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from stretto.core import Network
from stretto.membership.compose import first, following, nowhere
from stretto.membership.effects import Deny, Dial, Effect, Send, Timer
from stretto.membership.keeping import keep, kept
from stretto.membership.messages import FOUNDER, Ballot, Prepare, Report, Seat, View, Vote
from stretto.membership.settle import Settlement, admits, entry, settle, together
from stretto.membership.views import Views
from stretto.membership.votes import accept, blank, bound, majority, promise

sys.path.insert(0, str(Path(__file__).parent / "membership"))
import explore

FOUNDERS = Seat(100, FOUNDER, "here", 1, (), ())
SEATS = tuple(Seat(uid, uid, "here", 1, (), ()) for uid in (1, 2, 3))


def report(uid: int, round: int, done: bytes = b"", *, fence: bool = False, since: int = 0) -> Report:
    return Report(uid, round, bool(done), done, fence, True, "model", since=since)


def view(*reports: Report, seats: tuple[Seat, ...] = SEATS) -> View:
    base = first(nowhere(FOUNDERS, Network()), seats)
    return replace(base, number=2, reports=reports, entry=entry(reports))


# Searching. 200 worlds here; `python tests/membership/explore.py 0 100000` for longer.


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_whatever_breaks_there_is_one_chain_of_views_and_it_goes_on(start: int) -> None:
    broken = explore.explore(range(start, start + 50))
    assert broken is None, broken[1] if broken else ""


# Views.


def test_a_view_needs_a_majority_of_the_last() -> None:
    voters = first(nowhere(FOUNDERS, Network()), SEATS).voters
    assert voters == (1, 2, 3, 100) and majority(voters) == 3


def test_an_agent_alone_needs_no_leave_of_the_coordinator_to_go_on() -> None:
    assert first(nowhere(FOUNDERS, Network()), SEATS[:1]).voters == (1,)


def test_seats_of_the_first_view_are_in_the_order_of_labels() -> None:
    assert [seat.label for seat in first(nowhere(FOUNDERS, Network()), SEATS[::-1]).seats] == [1, 2, 3]


def test_newcomers_enter_only_where_the_latest_round_is_a_fence() -> None:
    assert admits([report(1, 7, b"\0", fence=True), report(2, 6, b"\1")])
    assert not admits([report(1, 6, b"\0", fence=True), report(2, 7, b"\0")])
    assert entry([report(1, 7), report(2, 6)]) == 7


def test_without_the_model_there_is_no_next_view() -> None:
    base = first(nowhere(FOUNDERS, Network()), SEATS)
    unhealed = {1: replace(report(1, 3), healed=False)}
    assert following(base, unhealed, (), proposer=100, founder=True, why="") is None


def test_who_is_healed_after_it_has_reported_says_so_to_whoever_asked() -> None:
    """Its donors may all be gone: then it alone has the model, and training goes on from there."""
    base = view(report(1, 5))
    agent = Views.agent(SEATS[1], base, 1)
    agent.begin(), agent.met(100)
    agent.heard(100, Prepare(base, Ballot(1, 100)))
    late = replace(report(2, 5), healed=False)
    said = [agent.frozen(2, r) for r in (late, replace(late, healed=True), late)]
    promises = [[e.message.report for e in effects if isinstance(e, Send)] for effects in said]
    assert [[r.healed for r in reports if r is not None] for reports in promises] == [[False], [True], []]


# Being alone.


def alone(views: Views, seconds: float, every: float = math.inf) -> list[Effect]:
    """What it does in a world where nobody answers; but ``every`` so many seconds agent 1 does, and goes away again."""
    now, met, done, due = 0.0, 0.0, list[Effect](), list[tuple[float, str]]()

    def carry_out(effects: list[Effect]) -> None:
        done.extend(effects)
        for effect in effects:
            if isinstance(effect, Dial):
                carry_out(views.lost(effect.seat.uid, "refused"))
            elif isinstance(effect, Timer):
                due.append((now + effect.seconds, effect.name))

    carry_out(views.begin() + views.lost(views._following, "closed"))
    while due and now < seconds:
        now, name = min(due)
        due.remove((now, name))
        if now > met + every:
            met = now
            carry_out(views.met(1) + views.lost(1, "closed"))
        carry_out(views.timer(name))
    return done


def denials(effects: list[Effect]) -> int:
    return sum(isinstance(effect, Deny) for effect in effects)


def test_who_is_not_in_the_view_and_finds_nobody_for_long_gives_up_in_words() -> None:
    newcomer = Views.agent(Seat(9, 0, "here", 1, (), ()), view(report(1, 5)), 1)
    assert denials(alone(newcomer, 250)) == 0
    newcomer = Views.agent(Seat(9, 0, "here", 1, (), ()), view(report(1, 5)), 1)
    words = "nobody has answered for 5 minutes: the run is over, or all its agents are lost; start it again"
    assert Deny(words) in alone(newcomer, 350)


def test_a_member_waits_for_the_others_however_long() -> None:
    assert denials(alone(Views.agent(SEATS[2], view(report(1, 5)), 1), 5000)) == 0


def test_who_casts_the_vote_of_its_last_life_waits_however_long() -> None:
    standin = Views.agent(Seat(9, 3, "here", 1, (), ()), view(report(1, 5)), 1, vote=blank(3, 3))
    assert denials(alone(standin, 5000)) == 0


def test_whoever_finds_somebody_now_and_then_goes_on_looking() -> None:
    newcomer = Views.agent(Seat(9, 0, "here", 1, (), ()), view(report(1, 5)), 1)
    assert denials(alone(newcomer, 2000, every=100)) == 0


# Settlements.


def test_there_is_nothing_to_settle_where_nobody_has_begun() -> None:
    assert settle(view(report(1, 5), report(2, 5))) is None


def test_a_round_whose_buckets_are_all_somewhere_is_shared() -> None:
    shared = settle(view(report(1, 5, b"\1\0"), report(2, 5, b"\0\1"), report(3, 5, b"\0\0")))
    assert shared == Settlement(5, True, (0, 1), ((1, 2), (0, 2)), (0, 1, 2))


def test_a_round_that_lacks_a_bucket_is_redone_as_a_whole() -> None:
    redone = settle(view(report(1, 5, b"\1\0"), report(2, 5, b"\1\0"), report(3, 5)))
    assert redone == Settlement(5, False, (), (), (0, 1, 2))


def test_who_is_ahead_has_all_of_the_round_before() -> None:
    shared = settle(view(report(1, 5, b"\0\0"), report(2, 6), report(3, 5, b"\1\0")))
    assert shared is not None and shared.share and shared.holders == (1, 1)


def test_a_newcomer_has_nothing_of_the_rounds_before_it_came() -> None:
    redone = settle(view(report(1, 5, b"\0\0"), report(2, 6, since=6)))
    assert redone == Settlement(5, False, (), (), (0,))


def test_who_enters_with_this_very_round_is_given_its_buckets() -> None:
    shared = settle(view(report(1, 5, b"\1"), report(2, 5, b"\0")))
    assert shared is not None and shared.lacking == ((1, 2),)


def test_who_came_in_after_a_round_that_is_redone_comes_in_again() -> None:
    """In that round nobody waits for it; and what it was given may hold a result of it that no survivor has."""
    base = first(nowhere(FOUNDERS, Network()), SEATS)
    early, late = report(1, 5, b"\0\0", fence=True), report(2, 6, since=6)

    def next_view(*reports: Report) -> View | None:
        return following(base, {r.uid: r for r in reports}, (), proposer=2, founder=False, why="")

    redone = next_view(early, late)
    assert redone is not None and [seat.uid for seat in redone.seats] == [1]
    assert (redone.leader, redone.entry) == (1, 5)
    assert [report.uid for report in together([early, replace(late, since=0)])] == [1, 2]
    assert [report.uid for report in together([replace(early, done=b"\1\1"), late])] == [1, 2]
    assert [report.uid for report in together([replace(early, healed=False), late])] == [2]


# Votes.


def test_a_promise_is_kept_against_lower_ballots() -> None:
    low, high = Ballot(1, 9), Ballot(2, 1)
    vote = promise(blank(1, 2), high)
    assert vote is not None and vote.promised == high
    assert promise(vote, low) is None
    assert accept(vote, low, view()) is None


def test_what_may_have_been_decided_is_proposed_again() -> None:
    old, new = replace(view(), why="old"), replace(view(), why="new")
    votes = [Vote(1, 2, Ballot(3, 1), Ballot(1, 1), old), Vote(2, 2, Ballot(3, 1), Ballot(2, 2), new), blank(3, 2)]
    assert bound(votes) == new
    assert bound([blank(3, 2)]) is None


def test_a_vote_outlives_its_process(tmp_path: Path) -> None:
    vote = Vote(1, 2, Ballot(3, 1), Ballot(1, 1), view(), view())
    keep(tmp_path, 4, vote)
    assert kept(tmp_path, 4) == vote
    (tmp_path / "vote-5").write_bytes(b"damaged")
    assert kept(tmp_path, 5) is None
    keep(tmp_path, 4, None)
    assert kept(tmp_path, 4) is None
