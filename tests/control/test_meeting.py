"""Control connections on real sockets: who is met, and who is dialled in vain."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from nodes import PATIENCE, Node, call, enter, heard, pulsed, seat, until

from stretto.links import addresses as places
from stretto.membership.dialling import in_order
from stretto.membership.messages import Expect, Hello, Leave, Pulse, Ready, encode

pytestmark = pytest.mark.network


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
