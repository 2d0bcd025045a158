"""Control connections on real sockets and processes: who is met, what is heard, and why somebody is lost."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from networks import in_a_network_of_its_own, set_loopback

from stretto.links import addresses as places
from stretto.links.addresses import split
from stretto.links.handshake import ANYONE, Claim, Handshake, Purpose, prove
from stretto.links.loop import Loop
from stretto.membership import connection, control, reception, suspicion
from stretto.membership.connection import Door
from stretto.membership.control import Control, process_state
from stretto.membership.dialling import dial, in_order
from stretto.membership.messages import Decoder, Denied, Expect, Hello, Leave, Message, Pulse, Ready, Seat, encode

pytestmark = pytest.mark.network

SECRET = "a long and random secret"
PATIENCE = 20.0


def seat(uid: int, *control: str) -> Seat:
    return Seat(uid, uid, "here", os.getpid(), (), control)


def door(uid: int, secret: str = SECRET) -> Door:
    def no_certificate() -> Any:
        raise AssertionError("TLS was not expected")

    return Door(secret, uid, no_certificate)


class Node:
    """A Control with a listener and a loop in a thread of its own; what it was told is in ``told``."""

    def __init__(self, uid: int, state: Callable[[], str] = lambda: "R") -> None:
        self.uid = uid
        self.said: list[str] = []
        self.told: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.state = state
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = places.join(*self.listener.getsockname()[:2])
        self.seat = seat(uid, self.address)
        self.loop: Loop
        self.control: Control
        self._begun, self._over = threading.Event(), False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Node:
        self.thread.start()
        assert self._begun.wait(PATIENCE)
        return self

    def _run(self) -> None:
        self.loop = Loop()
        self.control = Control(
            self.loop,
            self.seat,
            SECRET,
            [self.listener],
            heard=lambda *what: self.told.put(("heard", *what)),
            met=lambda *what: self.told.put(("met", *what)),
            lost=lambda *what: self.told.put(("lost", *what)),
            say=self.said.append,
            state=self.state,
        )
        self._begun.set()
        while not self._over:
            self.loop.turn()
        self.loop.close()

    def do(self, function: Callable[[], Any]) -> Any:
        """``function()`` in the loop's thread."""
        answer: queue.Queue[Any] = queue.Queue()
        self.loop.call(lambda: answer.put(function()))
        return answer.get(timeout=PATIENCE)

    def next(self, *kinds: str) -> tuple[Any, ...]:
        """The next thing it was told, of these kinds if any are given."""
        ends = time.monotonic() + PATIENCE
        while True:
            told = self.told.get(timeout=max(0.01, ends - time.monotonic()))
            if not kinds or told[0] in kinds:
                return told

    def dials(self, other: Seat) -> None:
        self.do(lambda: self.control.dial(other, lambda: Hello(self.seat, 2, 0)))

    def end(self) -> None:
        if not self._over:
            self.do(self.control.close)
            self._over = True
            self.loop.call(lambda: None)
            self.thread.join(PATIENCE)


@pytest.fixture
def node() -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(uid: int, **options: Any) -> Node:
        nodes.append(Node(uid, **options).start())
        return nodes[-1]

    yield make
    for n in nodes:
        n.end()


def call(node: Node, uid: int, secret: str = SECRET, peer: int | None = None) -> socket.socket:
    """A proven connection of our own, on which nothing has been said."""
    return dial(node.address, door(uid, secret), node.uid if peer is None else peer, "the node")


def enter(node: Node, uid: int) -> socket.socket:
    sock = call(node, uid)
    sock.sendall(encode(Hello(seat(uid), 2, 0)))
    assert node.next()[:2] == ("met", uid)
    return sock


def heard(sock: socket.socket, *ignored: type[Message]) -> Message | None:
    """The next message that is not ignored; None at the end."""
    sock.settimeout(PATIENCE)
    decoder = Decoder(1 << 16)
    while True:
        data = sock.recv(decoder.wants)
        if not data:
            return None
        for message in decoder.feed(data):
            if not isinstance(message, ignored):
                return message


@contextlib.contextmanager
def process(function: Callable[[], None]) -> Iterator[int]:
    """A forked process that runs ``function`` and is killed at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def lives(uid: int, other: Seat, state: Callable[[], str] = lambda: "R") -> Callable[[], None]:
    """What a process does that dials ``other`` and then pulses for good."""

    def life() -> None:
        Node(uid, state).start().dials(other)
        time.sleep(10 * PATIENCE)

    return life


def pulsed(node: Node, uid: int) -> None:
    """Wait until ``node`` has a rhythm of ``uid``."""
    ends = time.monotonic() + PATIENCE
    while len(node.do(lambda: node.control._lines[uid].vigil._rhythm._gaps)) < 2:
        assert time.monotonic() < ends
        time.sleep(0.01)


# Meeting and talking


def test_one_dials_and_both_meet_and_what_they_say_arrives_in_order(node: Callable[..., Node]) -> None:
    a, b = node(1), node(2)
    a.dials(b.seat)
    assert a.next() == ("met", 2, None)
    assert b.next() == ("met", 1, Hello(a.seat, 2, 0))
    a.do(lambda: a.control.send(2, Expect(), Ready("x"), Leave()))
    b.do(lambda: b.control.send(1, Ready("y")))
    assert [b.next()[2] for _ in range(3)] == [Expect(), Ready("x"), Leave()]
    assert a.next() == ("heard", 2, Ready("y"))


def test_pulses_go_both_ways_and_carry_the_trainers_state(node: Callable[..., Node]) -> None:
    a, b = node(1, state=lambda: "D"), node(2)
    a.dials(b.seat)
    b.next("met")
    pulsed(a, 2)
    pulsed(b, 1)
    assert b.do(lambda: b.control._lines[1].vigil.state) == "D"


def test_when_two_dial_each_other_one_connection_is_left(node: Callable[..., Node]) -> None:
    a, b = node(1), node(2)
    a.dials(b.seat)
    b.dials(a.seat)
    ends = time.monotonic() + PATIENCE
    while not (a.do(lambda: _direction(a)) == [(2, True)] and b.do(lambda: _direction(b)) == [(1, False)]):
        assert time.monotonic() < ends, "the connection that 1 dialled does not stand"
        time.sleep(0.01)
    a.do(lambda: a.control.send(2, Ready("x")))
    assert b.next("heard") == ("heard", 1, Ready("x"))


def _direction(n: Node) -> list[tuple[int, bool]]:
    return [(uid, line.dialled) for uid, line in n.control._lines.items()]


def test_who_calls_again_is_met_again_and_its_first_connection_ends(node: Callable[..., Node]) -> None:
    a = node(1)
    with enter(a, 7) as first, call(a, 7) as second:
        second.sendall(encode(Hello(seat(7), 2, 0)))
        assert a.next()[:2] == ("met", 7)
        assert heard(first, Pulse) is None


def test_a_proven_connection_is_adopted(node: Callable[..., Node]) -> None:
    a, b = node(1), node(2)
    sock = call(b, 1)
    sock.sendall(encode(Hello(a.seat, 2, 0)))
    assert b.next()[:2] == ("met", 1)
    b.do(lambda: b.control.send(1, Ready("early")))
    a.do(lambda: a.control.adopt(2, sock))
    assert [a.next(), a.next()] == [("met", 2, None), ("heard", 2, Ready("early"))]


def test_off_this_machine_all_of_it_goes_through_tls(node: Callable[..., Node], monkeypatch: Any) -> None:
    monkeypatch.setattr(places, "is_here", lambda host: False)
    a, b = node(1), node(2)
    a.dials(b.seat)
    assert a.next() == ("met", 2, None) and b.next()[:2] == ("met", 1)
    b.do(lambda: b.control.send(1, *[Ready("y" * 200)] * 1000))
    assert [a.next()[2] for _ in range(1000)] == [Ready("y" * 200)] * 1000
    assert type(a.do(lambda: a.control._lines[2].connection.sock)).__name__ == "SSLSocket"


# Going


def test_a_last_word_arrives_before_the_connection_ends(node: Callable[..., Node]) -> None:
    a = node(1)
    with enter(a, 7) as sock:
        sock.sendall(encode(Ready("unread")) * 50)
        a.do(lambda: (a.control.send(7, Denied("not you")), a.control.drop(7)))
        assert heard(sock, Pulse) == Denied("not you")
        assert heard(sock, Pulse) is None
    assert a.told.empty() or a.next()[0] == "heard", "whoever is dropped is not lost"


def test_at_a_farewell_all_that_was_said_arrives(node: Callable[..., Node]) -> None:
    a, b = node(1), node(2)
    a.dials(b.seat)
    a.next("met")
    b.do(lambda: b.control.send(1, *[Ready("on its way")] * 100))
    a.do(lambda: (a.control.send(2, Leave()), a.loop.spawn(a.control.farewell())))
    assert [b.next("heard", "lost")[:3] for _ in range(2)] == [("heard", 1, Leave()), ("lost", 1, "closed")]


def test_a_killed_process_is_told_as_closed(node: Callable[..., Node]) -> None:
    a = node(1)
    with process(lives(2, a.seat)) as pid:
        assert a.next()[:2] == ("met", 2)
        pulsed(a, 2)
        os.kill(pid, signal.SIGKILL)
        assert a.next()[:3] == ("lost", 2, "closed")


def test_a_word_to_a_process_that_was_just_killed_is_no_cut_cable(node: Callable[..., Node], monkeypatch: Any) -> None:
    monkeypatch.setattr(places, "is_here", lambda host: False)  # through TLS
    a, b = node(1), node(2)
    a.dials(b.seat)
    a.next("met")
    line = a.do(lambda: a.control._lines[2])

    def speak() -> None:
        """Into what has ended, before it is found to have ended."""
        b.do(b.control.close)
        while line.connection._broken is None:
            line.connection.send(encode(Leave()))
            time.sleep(0.01)

    a.do(speak)
    assert a.next("lost")[:3] == ("lost", 2, "closed")


def test_a_stopped_process_is_told_as_stopped(node: Callable[..., Node]) -> None:
    a = node(1)
    with process(lives(2, a.seat)) as pid:
        assert a.next()[:2] == ("met", 2)
        pulsed(a, 2)
        os.kill(pid, signal.SIGSTOP)
        *lost, why = a.next()
        assert lost == ["lost", 2, "stopped"] and "its machine acknowledges" in why


def test_a_stopped_trainer_is_told_as_stopped_though_its_courier_is_not(node: Callable[..., Node]) -> None:
    a = node(1)
    with (
        process(lambda: time.sleep(100)) as trainer,
        process(lives(2, a.seat, state=lambda: process_state(trainer))),
    ):
        assert a.next()[:2] == ("met", 2)
        pulsed(a, 2)
        os.kill(trainer, signal.SIGSTOP)
        *lost, why = a.next()
        assert lost == ["lost", 2, "stopped"] and "trainer has been stopped" in why and "state T" in why


def test_a_long_tensor_operation_holds_no_pulse_up(node: Callable[..., Node], monkeypatch: Any) -> None:
    monkeypatch.setattr(suspicion, "FLOOR", 1.0)
    monkeypatch.setattr(suspicion, "CEILING", 1.0)
    a = node(1)

    def computes() -> None:
        Node(2).start().dials(a.seat)
        torch.set_num_threads(1)
        x = torch.zeros(3000, 3000)
        while True:
            x = x @ x

    with process(computes):
        assert a.next()[:2] == ("met", 2)
        with pytest.raises(queue.Empty):
            a.told.get(timeout=3.0)


def test_a_process_that_was_stopped_itself_forgives_the_others_that_time(monkeypatch: Any) -> None:
    """They said nothing either; now they do."""
    monkeypatch.setattr(suspicion, "FLOOR", 1.0)
    monkeypatch.setattr(suspicion, "CEILING", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = seat(9, places.join(*listener.getsockname()))
        with process(lives(2, other)) as pid:
            sock, _ = listener.accept()
            with sock:
                prove(sock, Handshake(SECRET, Claim(Purpose.RENDEZVOUS, 0, 9, ANYONE), dials=False))
                assert isinstance(heard(sock), Hello)
                for number in range(3):
                    sock.sendall(encode(Pulse(number)))
                    assert isinstance(heard(sock), Pulse)
                os.kill(pid, signal.SIGSTOP)
                time.sleep(2.0)
                os.kill(pid, signal.SIGCONT)
                before = [heard(sock) for _ in range(3)]
                sock.sendall(encode(Pulse(4)))
                after = [heard(sock) for _ in range(3)]
                assert all(isinstance(m, Pulse) for m in before + after)


def test_who_does_not_read_is_given_up_before_memory_is(node: Callable[..., Node], monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "_MOST_UNSENT", 1 << 16)
    a = node(1)
    with enter(a, 7):
        a.do(lambda: [a.control.send(7, Denied("x" * 4000)) for _ in range(5000)])
        assert a.next() == ("lost", 7, "stopped", "it does not read what it is told")


def test_a_cut_cable_is_told_as_cut_by_both_ends() -> None:
    def told() -> list[tuple[Any, ...]]:
        a, b = Node(1).start(), Node(2).start()
        a.dials(b.seat)
        a.next("met"), b.next("met")
        pulsed(a, 2), pulsed(b, 1)
        set_loopback(False)
        return [a.next(), b.next()]

    for kind, _, what, why in in_a_network_of_its_own(told):
        assert (kind, what) == ("lost", "cut") and "nor an acknowledgement" in why


def test_a_machine_that_forgot_the_connection_is_told_as_half_open() -> None:
    """Its host was cut off, lost its memory, and is back: it answers with a reset."""

    def told() -> tuple[Any, ...]:
        suspicion.FLOOR = suspicion.CEILING = PATIENCE  # type: ignore[misc]
        a = Node(1).start()
        sock = enter(a, 7)
        sock.sendall(encode(Pulse(1)))
        pulse_taken(a, 7)
        set_loopback(False)
        time.sleep(suspicion.RESET_LATE)
        sock.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: closing says nothing to the other end
        sock.close()
        set_loopback(True)
        return a.next()

    kind, _, what, why = in_a_network_of_its_own(told)
    assert (kind, what) == ("lost", "half-open") and "reset" in why


def pulse_taken(node: Node, uid: int) -> None:
    ends = time.monotonic() + PATIENCE
    while not node.do(lambda: node.control._lines[uid].vigil.state):
        assert time.monotonic() < ends
        time.sleep(0.01)


# Dialling in vain


def test_nobody_there_is_told_as_half_open(node: Callable[..., Node]) -> None:
    a = node(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = places.join(*taken.getsockname())
    a.dials(seat(2, address))
    *lost, why = a.next()
    assert lost == ["lost", 2, "half-open"] and address in why


def test_another_process_at_its_address_is_not_taken_for_it(node: Callable[..., Node]) -> None:
    a, b = node(1), node(2)
    a.dials(seat(3, b.address))
    *lost, why = a.next()
    assert lost == ["lost", 3, "closed"] and "somebody else answers" in why
    a.dials(seat(3, b.address))
    assert a.next()[:2] == ("lost", 3)
    assert b.told.empty()


def test_the_addresses_are_tried_in_order_until_one_answers(node: Callable[..., Node]) -> None:
    a, b, wrong = node(1), node(2), node(3)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = places.join(*taken.getsockname())
    a.dials(seat(2, nobody, wrong.address, b.address))
    assert a.next() == ("met", 2, None)


def test_loopback_is_tried_first_on_one_machine_and_never_from_another() -> None:
    s = seat(1, "10.0.0.1:1", "127.0.0.1:1", "[::1]:1", "[fd00::1]:1")
    assert in_order(s, "here") == ["127.0.0.1:1", "[::1]:1", "10.0.0.1:1", "[fd00::1]:1"]
    assert in_order(s, "there") == ["10.0.0.1:1", "[fd00::1]:1"]


def test_who_is_dropped_while_it_is_dialled_is_neither_met_nor_lost(node: Callable[..., Node]) -> None:
    a, b = node(1), node(2)
    a.do(lambda: (a.control.dial(b.seat, lambda: Hello(a.seat, 2, 0)), a.control.drop(2)))
    until(lambda: any("its connection was closed" in line for line in b.said))
    assert a.told.empty() and b.told.empty()


# Strangers


def test_another_secret_is_refused_in_words_to_both(node: Callable[..., Node]) -> None:
    a = node(1)
    with pytest.raises(Exception, match="another secret"):
        call(a, 7, secret="a guess")
    until(lambda: any("refused a stranger" in line and "another secret" in line for line in a.said))
    assert a.told.empty()


def test_the_address_is_enough_to_find_whoever_answers_there(node: Callable[..., Node]) -> None:
    with call(node(1), 7, peer=ANYONE):
        pass


@pytest.mark.parametrize("word", [Ready("x"), Hello(seat(8), 2, 0), Pulse(1)], ids=["ready", "another uid", "pulse"])
def test_who_has_proven_itself_still_says_hello_first_and_as_itself(node: Callable[..., Node], word: Message) -> None:
    a = node(1)
    with call(a, 7) as sock:
        sock.sendall(encode(word))
        assert heard(sock) is None
    assert a.told.empty()


def test_nonsense_ends_the_connection(node: Callable[..., Node]) -> None:
    a = node(1)
    for nonsense in (b"\xff" * 100, encode(Hello(seat(7), 2, 0))):
        with enter(a, 7) as sock:
            sock.sendall(nonsense)
            assert a.next()[:3] == ("lost", 7, "closed")


def test_silent_strangers_are_hurried_out_when_others_queue(node: Callable[..., Node], monkeypatch: Any) -> None:
    monkeypatch.setattr(reception, "MOST_STRANGERS", 8)
    monkeypatch.setattr(reception, "HURRY", 0.2)
    a = node(1)
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(socket.create_connection(split(a.address)))
        stack.enter_context(enter(a, 7))
        assert a.do(lambda: len(a.control._reception._here)) <= 8


def test_a_proven_one_that_says_nothing_is_given_up(node: Callable[..., Node], monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "DEADLINE", 0.3)
    with call(node(1), 7) as sock:
        assert heard(sock) is None


def until(true: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)


def test_the_state_of_a_process_is_read_from_proc() -> None:
    assert process_state(os.getpid()) == "R"
    with process(lambda: time.sleep(100)) as pid:
        until(lambda: process_state(pid) == "S")
        os.kill(pid, signal.SIGSTOP)
        until(lambda: process_state(pid) == "T")
    assert process_state(pid) == "X"


def test_a_pulse_is_sent_often_enough_for_the_floor() -> None:
    assert 5 * control.PULSE < suspicion.FLOOR and suspicion.CEILING + 2 * control.PULSE < 3.0
