"""Views with servers: they rank behind the agents, vote like them, and no round knows them."""

from __future__ import annotations

from msgspec.structs import replace

from stretto.core import FIRST_SERVER, Epoch, Member, Network
from stretto.membership.compose import first, following, listed, nowhere
from stretto.membership.founding import Founding
from stretto.membership.messages import FOUNDER, UNNUMBERED, Hello, Report, Seat, View
from stretto.membership.settle import Settlement, entry, settle
from stretto.membership.votes import majority
from stretto.session import views

FOUNDERS = Seat(100, FOUNDER, "here", 1, (), ())


def seat(uid: int, label: int, *, serves: bool = False) -> Seat:
    return Seat(uid, label + FIRST_SERVER * serves, f"host{uid}", 1, (), (), serves=serves)


AGENTS = (seat(1, 0), seat(2, 1))
SERVERS = (seat(8, 0, serves=True), seat(9, 1, serves=True))


def report(uid: int, round: int, done: bytes = b"", *, fence: bool = False) -> Report:
    return Report(uid, round, bool(done), done, fence, True, "model")


def well(uid: int) -> Report:
    """What a server reports."""
    return Report(uid, 0, False, b"", False, True, "")


def begun(*seats: Seat) -> View:
    return first(nowhere(FOUNDERS, Network()), seats)


def after(base: View, reports: list[Report], *newcomers: Seat) -> View | None:
    said = {r.uid: r for r in reports}
    return following(base, said, newcomers, proposer=100, founder=True, why="so")


def uids(view: View | None) -> list[int]:
    assert view is not None
    return [s.uid for s in view.seats]


def test_agents_come_before_servers_in_the_first_view() -> None:
    view = begun(SERVERS[1], AGENTS[1], SERVERS[0], AGENTS[0])
    assert uids(view) == [1, 2, 8, 9]
    assert view.why == "all 2 agents have come, and 2 to serve them"


def test_an_agent_that_comes_later_ranks_before_the_servers() -> None:
    said = [report(1, 5, b"\0", fence=True), report(2, 5), well(8)]
    view = after(begun(*AGENTS, SERVERS[0]), said, seat(3, 2), SERVERS[1])
    assert uids(view) == [1, 2, 3, 8, 9]


def test_a_server_comes_in_where_no_agent_could() -> None:
    said = [report(1, 5, b"\0"), report(2, 6), well(8)]
    view = after(begun(*AGENTS, SERVERS[0]), said, seat(3, 2), SERVERS[1])
    assert uids(view) == [1, 2, 8, 9]
    assert view is not None and view.entry == 6 and all(s.healed for s in view.seats)


def test_servers_vote() -> None:
    view = begun(*AGENTS, *SERVERS)
    assert view.voters == (1, 2, 8, 9, 100)
    assert majority(view.voters) == 3
    assert begun(AGENTS[0], SERVERS[0]).voters == (1, 8, 100)


def test_servers_alone_have_nothing_to_go_on_with() -> None:
    assert after(begun(*AGENTS, *SERVERS), [well(8), well(9)]) is None


def test_a_round_is_settled_among_agents_as_if_there_were_no_servers() -> None:
    reports = (report(1, 5, b"\1\0"), report(2, 5, b"\0\1"))
    plain = replace(begun(*AGENTS), number=2, reports=reports, entry=entry(reports))
    served = replace(begun(*AGENTS, *SERVERS), number=2, reports=(*reports, well(8), well(9)), entry=entry(reports))
    assert settle(served) == settle(plain) == Settlement(5, True, (0, 1), ((1,), (0,)), (0, 1))


def test_servers_have_no_part_in_a_round_and_no_state_to_give() -> None:
    view = begun(*AGENTS, *SERVERS)
    assert views.parts(view, 1) == views.parts(begun(*AGENTS), 1)
    assert views.donors(view, 0) == [1]
    assert views.newcomers(view, 0) == []


def test_trainers_are_told_of_the_agents_and_the_hosts_are_numbered_alike() -> None:
    epoch = views.epoch_of(begun(*AGENTS, *SERVERS))
    assert [m.serves for m in epoch.members] == [False, False, True, True]
    assert epoch.agents == views.epoch_of(begun(*AGENTS))
    assert epoch.hosts[: epoch.agents.size] == epoch.agents.hosts
    alone = Epoch(1, (Member(0, "here", 1, ()),))
    assert alone.agents is alone


# Who has come before the first view.


def hello(who: Seat, size: int = 2) -> Hello:
    return Hello(who, size, 0)


def test_the_first_view_waits_for_agents_and_servers() -> None:
    founding = Founding(2, servers=1)
    founding.here = {s.uid: s for s in AGENTS}
    assert founding.missing() == (FIRST_SERVER,) and founding.complete() is None
    assert listed(founding.missing()) == "server 0"
    founding.here[8] = SERVERS[0]
    assert founding.missing() == () and founding.complete() == [*AGENTS, SERVERS[0]]


def test_who_has_no_number_gets_one_of_its_kind() -> None:
    founding = Founding(1, servers=1)
    founding.here = {s.uid: replace(s, label=UNNUMBERED) for s in (SERVERS[0], AGENTS[0])}
    assert founding.complete() == [SERVERS[0], AGENTS[0]]


def test_a_server_more_than_was_asked_for_is_welcome_and_an_agent_is_not() -> None:
    founding = Founding(2, servers=0)
    assert founding.objection(hello(SERVERS[1])) is None
    founding.here = {s.uid: s for s in (AGENTS[0], SERVERS[1])}
    assert founding.missing() == (1,)
    assert founding.objection(hello(seat(3, 2))) == "agent 2 is not one of 2; ranks are 0 to 1"


def test_two_servers_of_one_number_are_told_apart_in_words() -> None:
    founding = Founding(2, servers=2)
    founding.here = {8: SERVERS[0]}
    words = "there is a server 0 already (process 1); give every server its own number"
    assert founding.objection(hello(seat(9, 0, serves=True))) == words
