"""The contract of a store of views, over the real servers: one view a number, and who is here, oldest first."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import stores as servers
from msgspec.structs import replace

from stretto.errors import NetworkError, ProtocolError, Refused, UnknownName, UsageError
from stretto.membership.messages import Accepted, Ballot, Decide, Prepare, Promise, Propose, Report, Seat, View
from stretto.membership.stores import Store, etcd, gateway, open_store, parse, store, zookeeper
from stretto.membership.stores.clerk import STORE, Answer, Clerk, answer, doors
from stretto.membership.votes import Proposal, bound

pytestmark = pytest.mark.network

SECRET = "a long and random secret"
PATIENCE = 30.0


def seat(uid: int) -> Seat:
    return Seat(uid, uid, "here", 1, ("10.0.0.1:1",), ("10.0.0.1:2",))


def view(number: int, *uids: int, why: str = "") -> View:
    reports = tuple(Report(uid, 5, True, b"\1\0", False, True, "x") for uid in uids)
    return View(number, tuple(map(seat, uids)), uids, uids[0], reports, 5, why, 0.001, 1e9)


@pytest.fixture(scope="module", params=servers.SERVERS)
def server(request: Any, tmp_path_factory: Any) -> Iterator[servers.Server]:
    started = servers.SERVERS[request.param](tmp_path_factory.mktemp(request.param)).start()
    yield started
    started.kill()


_runs = itertools.count()


class Run:
    """One run's place in a store; what is opened there is closed at the end."""

    def __init__(self, server: servers.Server) -> None:
        self.server = server
        self.address = f"{server.address}/runs/{next(_runs)}"
        self.stores: list[Store] = []

    def open(self, secret: str = SECRET) -> Store:
        self.stores.append(open_store(self.address, secret))
        return self.stores[-1]


@pytest.fixture
def run(server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    for module in (etcd, zookeeper, gateway):
        monkeypatch.setattr(module, "LIFETIME", 2.0)
    made = Run(server)
    yield made
    for s in made.stores:
        s.close()


def until(true: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def uids(s: Store) -> list[int]:
    return [seat.uid for seat in s.present()]


# The chain of views


def test_a_chain_of_views_is_what_was_decided(run: Run) -> None:
    a, b = run.open(), run.open()
    assert a.latest() is None
    for number in (1, 2, 3):
        assert a.decide(view(number, 1, 2)) == view(number, 1, 2)
        assert b.latest() == view(number, 1, 2)


def test_the_second_to_propose_a_number_is_told_what_stands(run: Run) -> None:
    a, b = run.open(), run.open()
    a.decide(view(1, 1, 2))
    assert b.decide(view(1, 2, 1)) == view(1, 1, 2)
    a.decide(view(2, 1))
    assert b.decide(view(2, 2)) == view(2, 1)
    assert b.decide(view(1, 2)) == view(2, 1)


def test_a_view_stands_only_on_the_one_before_it(run: Run) -> None:
    a = run.open()
    with pytest.raises(NetworkError, match="is gone"):
        a.decide(view(2, 1))
    a.decide(view(1, 1))
    assert a.decide(view(3, 1)) == view(1, 1)


def test_to_propose_again_what_stands_changes_nothing(run: Run) -> None:
    a = run.open()
    assert [a.decide(view(1, 1)), a.decide(view(1, 1))] == [view(1, 1)] * 2
    assert a.decide(view(2, 1)) == view(2, 1)


def test_of_many_who_propose_at_once_all_are_told_the_same(run: Run) -> None:
    proposers = [run.open() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for number in range(1, 11):
            told = list(pool.map(lambda s, n=number: s.decide(view(n, proposers.index(s) + 1)), proposers))
            assert all(t == told[0] for t in told) and told[0].number == number


def test_a_new_run_begins_where_the_last_one_is_forgotten(run: Run) -> None:
    a, b = run.open(), run.open()
    for number in (1, 2):
        a.decide(view(number, 1))
    b.forget()
    b.forget()
    with pytest.raises(NetworkError, match="is gone"):
        a.decide(view(3, 1))
    assert b.decide(view(1, 9)) == view(1, 9) == a.latest()
    assert a.decide(view(3, 1)) == view(1, 9)


def test_a_view_of_five_hundred_agents_fits(run: Run) -> None:
    big = view(1, *range(1, 501), why="ü" * 1000)
    assert run.open().decide(big) == big == run.open().latest()


# Who is here


def test_those_that_are_here_are_told_oldest_first(run: Run) -> None:
    stores = {uid: run.open() for uid in (30, 10, 20)}
    for uid, s in stores.items():
        s.announce(seat(uid))
    assert stores[10].present() == (seat(30), seat(10), seat(20))


def test_who_closes_is_gone_at_once(run: Run) -> None:
    a, b = run.open(), run.open()
    a.announce(seat(1))
    b.announce(seat(2))
    a.close()
    assert uids(b) == [2]


@contextlib.contextmanager
def process(run: Run, uid: int) -> Iterator[int]:
    """A process that announces itself and stays."""
    pid = os.fork()
    if pid == 0:
        try:
            run.open().announce(seat(uid))
            time.sleep(1000)
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_who_is_killed_is_gone_after_a_while(run: Run) -> None:
    with process(run, 1):
        a = run.open()
        until(lambda: uids(a) == [1])
    until(lambda: uids(a) == [])


def test_who_was_stopped_for_long_comes_back_as_the_youngest(run: Run) -> None:
    with process(run, 1) as pid:
        a = run.open()
        until(lambda: uids(a) == [1])
        a.announce(seat(2))
        os.kill(pid, signal.SIGSTOP)
        until(lambda: uids(a) == [2])
        os.kill(pid, signal.SIGCONT)
        until(lambda: uids(a) == [2, 1])


def test_whoever_watches_is_called_when_something_changes(run: Run) -> None:
    a, b = run.open(), run.open()
    changed = threading.Event()
    b.watch(changed.set)
    for change, seen in (
        (lambda: a.announce(seat(1)), lambda: uids(b) == [1]),
        (lambda: a.decide(view(1, 1)), lambda: b.latest() == view(1, 1)),
        (lambda: a.decide(view(2, 1)), lambda: b.latest() == view(2, 1)),
        (a.close, lambda: uids(b) == []),
    ):
        until(lambda: changed.wait(0.5) and not changed.clear() and not changed.wait(0.5))
        change()
        until(lambda seen=seen: changed.wait(PATIENCE) and seen())


# When the store fails


def test_a_server_that_comes_back_is_waited_for(run: Run) -> None:
    a = run.open()
    a.announce(seat(1))
    a.decide(view(1, 1))
    run.server.kill()
    with ThreadPoolExecutor(1) as pool:
        decided = pool.submit(a.decide, view(2, 1))
        run.server.start()
        assert decided.result(PATIENCE) == view(2, 1)
    until(lambda: uids(a) == [1])


def test_a_store_that_answers_no_more_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    a = run.open()
    for module in (zookeeper, gateway):
        monkeypatch.setattr(module, "PATIENCE", 0.5)
    run.server.kill()
    try:
        with pytest.raises(NetworkError, match=r"has not answered .*for 0.5 s"):
            a.latest()
        with pytest.raises(NetworkError, match="answered at"):
            run.open()
    finally:
        run.server.start()


def test_what_another_secret_wrote_is_refused(run: Run) -> None:
    a, stranger = run.open(), run.open("a guess")
    stranger.announce(seat(9))
    with pytest.raises(Refused, match=r"a seat at .* was written with another secret"):
        a.present()
    a.decide(view(1, 1))
    with pytest.raises(Refused, match=r"a view at .* was written with another secret"):
        stranger.latest()


def test_where_nobody_is_another_run_may_begin_with_another_secret(run: Run) -> None:
    a = run.open()
    a.announce(seat(1))
    a.decide(view(1, 1))
    a.close()
    b = run.open("another secret")
    assert b.present() == ()
    b.forget()
    assert b.decide(view(1, 2)) == view(1, 2)


# The store as the only voter


BALLOTS = (Ballot(1, 1), Ballot(2, 2))


def test_a_proposer_that_asks_the_store_is_promised_and_accepted(run: Run) -> None:
    a = run.open()
    a.decide(base := replace(view(1, 1, 2, 3), voters=(STORE,)))
    proposal = Proposal(base, BALLOTS[0])
    said = answer(a, Prepare(base, proposal.ballot))
    assert isinstance(said, Promise) and said.ballot == proposal.ballot and said.vote is not None
    proposal.votes[STORE] = said.vote
    assert proposal.promised and bound(proposal.votes.values()) is None
    assert answer(a, Propose(proposal.ballot, view(2, 1))) == Accepted(2, proposal.ballot)
    proposal.accepted.add(STORE)
    assert proposal.decided


def test_of_two_proposers_the_second_is_told_what_is_decided(run: Run) -> None:
    a, b = run.open(), run.open()
    a.decide(base := view(1, 1, 2, 3))
    assert all(isinstance(answer(s, Prepare(base, n)), Promise) for s, n in zip((a, b), BALLOTS, strict=True))
    assert answer(b, Propose(BALLOTS[1], view(2, 2))) == Accepted(2, BALLOTS[1])
    assert answer(a, Propose(BALLOTS[0], view(2, 1))) == Decide(view(2, 2))
    assert answer(a, Prepare(base, BALLOTS[0])) == Decide(view(2, 2))


def test_a_proposer_that_dies_after_the_swap_has_decided(run: Run) -> None:
    a, b = run.open(), run.open()
    a.decide(base := view(1, 1, 2, 3))
    answer(a, Propose(BALLOTS[0], view(2, 1)))
    a.close()
    assert answer(b, Prepare(base, BALLOTS[1])) == Decide(view(2, 1))


def test_newcomers_find_the_doors_of_those_that_are_here(run: Run) -> None:
    a, b = run.open(), run.open()
    a.announce(replace(seat(2), control=("10.0.0.2:1", "10.0.0.3:1")))
    b.announce(seat(1))
    assert doors(run.open()) == ("10.0.0.2:1", "10.0.0.3:1", "10.0.0.1:2")


def test_a_clerk_asks_again_until_the_store_is_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zookeeper, "PATIENCE", 0.5)
    monkeypatch.setattr(gateway, "PATIENCE", 0.5)
    a = run.open()
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    clerk = Clerk(a, answers.put, said.put)
    clerk.ask(Propose(BALLOTS[0], view(1, 1)))
    assert answers.get(timeout=PATIENCE) == Accepted(1, BALLOTS[0])
    run.server.kill()
    try:
        clerk.ask(Propose(BALLOTS[0], view(2, 1)))
        assert "cannot decide on the next view" in said.get(timeout=PATIENCE)
    finally:
        run.server.start()
    assert answers.get(timeout=PATIENCE) == Accepted(2, BALLOTS[0])
    clerk.close()


# Addresses and seals, without a server


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("zoo://a:1/x", UnknownName, "no store is named 'zoo'"),
        ("zk://a:1", UsageError, "a path for each run"),
        ("etcd:///x", UsageError, "names no place"),
        ("etcd://a/x", UsageError, "not an address"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse(address)


def test_an_address_names_servers_and_a_path() -> None:
    place = parse("etcd://[fd00::1]:2379,b:1/team//run/")
    assert (place.servers, place.path) == ((("fd00::1", 2379), ("b", 1)), "/team/run")


def test_a_sealed_value_is_opened_only_where_and_as_what_it_was_sealed() -> None:
    seal = store.Seal(SECRET, parse("zk://a:1/x"))
    data = seal.close(seat(1))
    assert seal.open(Seat, data) == seat(1)
    with pytest.raises(Refused):
        seal.open(View, data)
    with pytest.raises(Refused):
        store.Seal(SECRET, parse("zk://a:1/y")).open(Seat, data)
    for at in range(0, len(data), 5):
        with pytest.raises(Refused):
            seal.open(Seat, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_a_sealed_value_of_a_later_version_is_no_value() -> None:
    seal = store.Seal(SECRET, parse("zk://a:1/x"))
    sealed = seal.close(replace(seat(1), uid=0))
    with pytest.raises(ProtocolError, match="no seat"):
        seal.open(Seat, sealed)
