"""Control connections on real sockets and processes: why somebody is lost, told at once and truly."""

from __future__ import annotations

import os
import queue
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import in_a_network_of_its_own, set_loopback
from nodes import PATIENCE, SECRET, Node, enter, heard, lives, process, pulsed, seat, until

from stretto.links import addresses as places
from stretto.links.handshake import ANYONE, Claim, Handshake, Purpose, prove
from stretto.membership import connection, control, suspicion
from stretto.membership.control import process_state
from stretto.membership.messages import Denied, Hello, Leave, Pulse, Ready, encode

pytestmark = pytest.mark.network


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


def test_the_state_of_a_process_is_read_from_proc() -> None:
    assert process_state(os.getpid()) == "R"
    with process(lambda: time.sleep(100)) as pid:
        until(lambda: process_state(pid) == "S")
        os.kill(pid, signal.SIGSTOP)
        until(lambda: process_state(pid) == "T")
    assert process_state(pid) == "X"


def test_a_pulse_is_sent_often_enough_for_the_floor() -> None:
    assert 5 * control.PULSE < suspicion.FLOOR and suspicion.CEILING + 2 * control.PULSE < 3.0
