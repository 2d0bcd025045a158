"""Rendezvous: all are told the same, whoever does not fit is told why, and strangers hold nobody up."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from stretto.core import Network
from stretto.errors import NetworkError, Refused, UsageError
from stretto.links import addresses
from stretto.links.handshake import ANYONE
from stretto.membership import Coordinator, Decoder, Entry, Hello, Message, Seat, encode, reception
from stretto.membership import connection as accepted
from stretto.membership import entry as entering
from stretto.membership.connection import Door
from stretto.membership.dialling import reach
from stretto.membership.messages import LONGEST, Leave, Prepare, Pulse

SECRET = "a long and random secret"


def come(
    coordinator: Coordinator | str,
    rank: int | None,
    size: int,
    secret: str = SECRET,
    say: Callable[[str], None] = print,
) -> Entry:
    address = coordinator if isinstance(coordinator, str) else coordinator.address
    place = (f"10.0.0.{rank}:4000", f"unix:{rank}")
    return entering.enter(
        address, secret, rank, size, addresses=place, control=("10.0.0.9:1",), host="here", pid=os.getpid(), say=say
    )


def prove_to(coordinator: Coordinator, uid: int = 7) -> socket.socket:
    """A connection that has proven the secret, and has not said who it is."""
    return reach(coordinator.address, Door(SECRET, uid, lambda: None), ANYONE, "the coordinator")[0]  # type: ignore[arg-type,return-value]


@contextlib.contextmanager
def coming(coordinator: Coordinator, ranks: list[int | None]) -> Iterator[list[Future[Entry]]]:
    """Agents that come at once, each in a thread; those that have entered leave at the end."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        futures = [pool.submit(come, coordinator, rank, len(ranks)) for rank in ranks]
        try:
            yield futures
        finally:
            for future in futures:
                with contextlib.suppress(NetworkError, UsageError):
                    future.result(20).sock.close()


def told(entry: Entry) -> Message:
    """The next message that an agent that has entered hears, pulses aside."""
    decoder = Decoder(LONGEST)
    entry.sock.settimeout(20)
    while True:
        data = entry.sock.recv(decoder.wants)
        assert data, "the coordinator went"
        for message in decoder.feed(data):
            if not isinstance(message, Pulse):
                return message


def wait_until(true: Callable[[], object]) -> None:
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)


def test_four_agents_meet_and_are_told_the_same() -> None:
    network = Network(delay=0.01, rate=1e6)
    with Coordinator(4, SECRET, "127.0.0.1", network=network) as c, coming(c, [2, 0, 3, 1]) as futures:
        entries = [future.result(20) for future in futures]
        assert [entry.rank for entry in entries] == [2, 0, 3, 1]
        assert all(entry.view == entries[0].view for entry in entries)
        assert (entries[0].view.delay, entries[0].view.rate) == (network.delay, network.rate)
        members = entries[0].view.seats
        assert [member.label for member in members] == [0, 1, 2, 3]
        assert members[3].addresses == ("10.0.0.3:4000", "unix:3") and members[3].host == "here"
        assert c.waiting_for() == () and c.present() == 4


def test_agents_without_a_rank_are_numbered_around_those_that_have_one() -> None:
    with Coordinator(4, SECRET, "127.0.0.1") as c, coming(c, [None, 2, None, 0]) as futures:
        entries = [future.result(20) for future in futures]
        assert (entries[1].rank, entries[3].rank) == (2, 0)
        assert {entries[0].rank, entries[2].rank} == {1, 3}


def test_one_can_ask_whom_the_coordinator_waits_for() -> None:
    with Coordinator(3, SECRET, "127.0.0.1") as c:
        assert c.waiting_for() == (0, 1, 2)
        with coming(c, [1, 0, 2]) as futures:
            [future.result(20) for future in futures]
            assert c.waiting_for() == ()


def test_when_an_agent_dies_the_others_are_asked_for_the_next_view() -> None:
    with Coordinator(3, SECRET, "127.0.0.1") as c, coming(c, [0, 1, 2]) as futures:
        entries = [future.result(20) for future in futures]
        entries[1].sock.close()
        for other in (entries[0], entries[2]):
            message = told(other)
            assert isinstance(message, Prepare) and message.base == other.view


def test_when_an_agent_leaves_it_is_no_reason_for_another_view() -> None:
    with Coordinator(3, SECRET, "127.0.0.1") as c, coming(c, [0, 1, 2]) as futures:
        entries = [future.result(20) for future in futures]
        entries[2].sock.sendall(encode(Leave()))
        entries[2].sock.close()
        wait_until(lambda: c.present() == 2)
        for entry in entries[:2]:
            entry.sock.sendall(encode(Leave()))
        wait_until(c.over)


def test_an_agent_that_talks_nonsense_is_lost_and_the_others_go_on() -> None:
    with Coordinator(3, SECRET, "127.0.0.1") as c, coming(c, [0, 1, 2]) as futures:
        entries = [future.result(20) for future in futures]
        entries[0].sock.sendall(b"\xff" * 100)
        assert isinstance(told(entries[1]), Prepare)
        assert isinstance(told(entries[2]), Prepare)
        wait_until(lambda: c.present() == 2)


def test_a_rank_that_is_taken_is_denied_and_the_first_keeps_it() -> None:
    with Coordinator(2, SECRET, "127.0.0.1") as c, ThreadPoolExecutor(2) as pool:
        first = pool.submit(come, c, 1, 2)
        wait_until(lambda: c.present() == 1)
        with pytest.raises(UsageError, match="there is an agent 1 already"):
            come(c, 1, 2)
        second = come(c, 0, 2)
        assert first.result(20).rank == 1
        second.sock.close()
        first.result().sock.close()


def test_another_number_of_agents_is_denied_with_both_numbers() -> None:
    with Coordinator(3, SECRET, "127.0.0.1") as c, pytest.raises(UsageError, match=r"agent 0 expects 4 agents.*3"):
        come(c, 0, 4)


def test_a_rank_beyond_the_size_is_denied() -> None:
    with Coordinator(3, SECRET, "127.0.0.1") as c, pytest.raises(UsageError, match="agent 3 is not one of 3"):
        come(c, 3, 3)


def test_who_comes_when_the_run_has_begun_is_a_newcomer_at_its_door() -> None:
    with Coordinator(1, SECRET, "127.0.0.1") as c, come(c, 0, 1).sock:
        late = come(c, None, 9)
        assert late.rank is None and late.view.number == 1 and late.head == late.view.leader
        late.sock.close()


def test_who_comes_when_the_run_is_over_is_told_so() -> None:
    with Coordinator(1, SECRET, "127.0.0.1") as c, come(c, 0, 1).sock as only:
        only.sendall(encode(Leave()))
        wait_until(c.over)
        with pytest.raises(UsageError, match="the run is over"):
            come(c, None, 1)


def test_a_label_that_lives_is_denied_to_a_newcomer() -> None:
    taken = pytest.raises(UsageError, match=f"there is an agent 0 already .process {os.getpid()}")
    with Coordinator(1, SECRET, "127.0.0.1") as c, come(c, 0, 1).sock, taken:
        come(c, 0, 1)


def test_another_secret_is_refused_and_the_others_go_on_waiting() -> None:
    said: list[str] = []
    with Coordinator(2, SECRET, "127.0.0.1", say=said.append) as c, ThreadPoolExecutor(1) as pool:
        first = pool.submit(come, c, 0, 2)
        wait_until(lambda: c.present() == 1)
        with pytest.raises(Refused, match="another secret"):
            come(c, 1, 2, secret="not the same")
        assert not first.done() and c.waiting_for() == (1,)
        with come(c, 1, 2).sock, first.result(20).sock:
            pass
    assert any(re.search(r"refused .* has another secret", line) for line in said)


def test_an_agent_that_dies_while_waiting_frees_its_rank_for_another() -> None:
    with Coordinator(2, SECRET, "127.0.0.1") as c:
        sock = prove_to(c)
        sock.sendall(encode(Hello(Seat(7, 0, "here", 1, (), ()), 2, 0)))
        wait_until(lambda: c.waiting_for() == (1,))
        sock.close()
        wait_until(lambda: c.waiting_for() == (0, 1))
        with coming(c, [0, 1]) as futures:
            assert futures[0].result(20).rank == 0


def test_when_the_coordinator_goes_those_who_wait_hear_it_at_once() -> None:
    c = Coordinator(2, SECRET, "127.0.0.1").start()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(come, c, 0, 2)
        wait_until(lambda: c.present() == 1)
        c.close()
        with pytest.raises(NetworkError, match="lost the coordinator"):
            first.result(20)
    c.close()


def test_agents_may_come_before_the_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entering, "_FIRST_WORD", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said = threading.Event()
    words: list[str] = []

    def say(line: str) -> None:
        words.append(line)
        said.set()

    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(come, f"127.0.0.1:{port}", 0, 1, SECRET, say)
        assert said.wait(20)
        with Coordinator(1, SECRET, "127.0.0.1", port):
            early.result(20).sock.close()
    assert f"agent 0 waits for the coordinator at 127.0.0.1:{port}" in words[0]


def test_a_coordinator_that_never_comes_is_given_up_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entering, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(NetworkError, match=r"agent 0 found no coordinator at .*is the launcher or agent 0 running"):
        come(f"127.0.0.1:{port}", 0, 2)


def test_a_port_in_use_is_named() -> None:
    with Coordinator(1, SECRET, "127.0.0.1") as c:
        port = addresses.split(c.address)[1]
        with pytest.raises(UsageError, match=f"port {port} is in use.*choose another port"):
            Coordinator(1, SECRET, "127.0.0.1", port)


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(UsageError, match=r"203\.0\.113\.7 is not an address of this machine, which has"):
        Coordinator(1, SECRET, "203.0.113.7")


def test_a_coordinator_on_every_interface_names_an_address_that_works() -> None:
    with Coordinator(1, SECRET) as c:
        come(c, 0, 1).sock.close()


def test_from_another_machine_everything_goes_through_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides are made to believe that the other is elsewhere."""
    monkeypatch.setattr(addresses, "is_here", lambda host: False)
    with Coordinator(3, SECRET, "127.0.0.1") as c, coming(c, [0, 1, 2]) as futures:
        entries = [future.result(20) for future in futures]
        assert all(type(entry.sock).__name__ == "SSLSocket" for entry in entries)
        entries[0].sock.close()
        assert isinstance(told(entries[1]), Prepare)


def test_from_another_machine_plain_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(addresses, "is_here", lambda host: False)
    with Coordinator(1, SECRET, "127.0.0.1", say=said.append) as c:
        with socket.create_connection(addresses.split(c.address)) as sock:
            sock.sendall(b"STRETTO\n")
            assert sock.recv(100) == b""
        assert any("does not speak TLS" in line for line in said)


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\x05no TLS",
        b"\x16\x03\x01\x40\x00begun",
        b"\0" * 5000,
        b"STRETTO\n\0\2",
    ],
    ids=["http", "bad TLS", "unfinished TLS", "zeros", "another version"],
)
def test_strangers_are_shown_out(words: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepted, "DEADLINE", 0.5)
    with Coordinator(1, SECRET, "127.0.0.1") as c:
        with socket.create_connection(addresses.split(c.address)) as stranger:
            stranger.settimeout(20)
            stranger.sendall(words)
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(1000):
                    pass
        come(c, 0, 1).sock.close()


def test_a_stranger_that_sends_garbage_forever_is_cut_off() -> None:
    with Coordinator(1, SECRET, "127.0.0.1") as c, socket.create_connection(addresses.split(c.address)) as stranger:
        with contextlib.suppress(OSError):
            while True:
                stranger.sendall(b"\x99" * 65536)
        come(c, 0, 1).sock.close()


def test_silent_strangers_exhaust_neither_sockets_nor_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are places: they are hurried out, and an agent comes in behind them."""
    monkeypatch.setattr(reception, "MOST_STRANGERS", 8)
    monkeypatch.setattr(reception, "HURRY", 0.2)
    with Coordinator(1, SECRET, "127.0.0.1") as c, contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(socket.create_connection(addresses.split(c.address)))
        come(c, 0, 1).sock.close()
        assert len(c._driver._control._reception._here) <= 8


def test_a_proven_agent_that_never_joins_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepted, "DEADLINE", 0.2)
    with Coordinator(1, SECRET, "127.0.0.1") as c, prove_to(c) as sock:
        sock.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
