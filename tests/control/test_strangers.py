"""Control connections: who is a stranger is shown out."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import pytest
from nodes import Node, call, enter, heard, seat, until

from stretto.links.addresses import split
from stretto.links.handshake import ANYONE
from stretto.membership import connection, reception
from stretto.membership.messages import Hello, Message, Pulse, Ready, encode

pytestmark = pytest.mark.network


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
