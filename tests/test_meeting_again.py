"""Two agents whose connection broke meet again in the next epoch, whoever is there first."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from worlds import SECRET, listen

from stretto.core import Epoch, Member
from stretto.links import connect
from stretto.links.connect import Switchboard
from stretto.links.loop import Loop, Task
from stretto.links.mesh import Mesh
from stretto.links.stream import Connection
from stretto.links.tls import make_certificate

pytestmark = pytest.mark.network
DEADLINE = 5.0
either_first = pytest.mark.parametrize("first", [0, 1])


class Party:
    """One agent's mesh and switchboard, as a courier has them."""

    def __init__(self, uid: int) -> None:
        self.loop = Loop()
        self.mesh: Mesh
        self.board: Switchboard
        self.listener, address = listen("tcp")
        self.member = Member(uid - 1, "here", os.getpid(), (address,), uid)

    def enter(self, number: int, *members: Member) -> None:
        epoch, rank = Epoch(number, members), members.index(self.member)
        if number > 1:
            self.board.enter(members)
            self.mesh.enter(epoch, rank)
            return
        self.mesh = Mesh(self.loop, rank, epoch, self._dial, parted=self._parted)
        self.board = Switchboard(
            self.loop,
            self.member,
            members,
            SECRET,
            make_certificate(),
            unix=False,
            adopt=self.mesh.adopt,
            lose=self.mesh.lose,
        )
        self.board.answer(self.listener)

    def _dial(self, uid: int) -> None:
        self.board.dial(uid)

    def _parted(self, uid: int) -> None:
        self.board.parted(uid)

    def meets(self, other: Party) -> bool:
        return self.mesh.meets(other.member.uid)

    def misses(self, other: Party) -> bool:
        return self.mesh.why_lost(other.member.uid) is not None

    def says(self, word: float) -> None:
        self.mesh.link(7).post(1 - self.mesh.rank, (torch.tensor([word]),))

    def hears(self) -> Task:
        link = self.mesh.link(7)

        async def word() -> float:
            return float((await link.recv(1 - link.rank)).payload[0])

        return self.loop.spawn(word())

    def close(self) -> None:
        self.board.close()
        self.loop.run(_moment(self.loop))
        self.mesh.close()
        self.loop.close()
        self.listener.close()


Parties = tuple[Party, Party]


async def _moment(loop: Loop) -> None:
    await loop.sleep(0.002)


def run(parties: Parties, until: Callable[[], bool]) -> None:
    ends = time.monotonic() + DEADLINE
    while not until():
        assert time.monotonic() < ends, "they hang"
        for party in parties:
            party.loop.run(_moment(party.loop))


def talk(parties: Parties) -> None:
    """Each says a word, and hears the other's."""
    heard = [party.hears() for party in parties]
    for word, party in enumerate(parties):
        party.says(word)
    run(parties, lambda: all(task.done for task in heard))
    assert [task.value for task in heard] == [1.0, 0.0]


def held(party: Party, other: Party) -> socket.socket:
    """As long as this is open, ``other`` does not hear that ``party`` has closed their connection."""
    peer = party.mesh.reach(other.member.uid)
    assert isinstance(peer, Connection) and peer.sock is not None
    return peer.sock.dup()


@pytest.fixture
def parties() -> Iterator[Parties]:
    """Uids 1 and 2, connected, in epoch 1."""
    a, b = Party(1), Party(2)
    for party in (a, b):
        party.enter(1, a.member, b.member)
    talk((a, b))
    yield a, b
    for party in (a, b):
        party.close()


def goes_first(parties: Parties, number: int, first: int) -> None:
    """One has noticed that the connection is gone, and is in epoch ``number`` before the other."""
    early, late = parties[first], parties[1 - first]
    early.mesh.lose(late.member.uid, "it broke")
    early.enter(number, *(party.member for party in parties))
    early.says(number)


def follows(parties: Parties, number: int, first: int) -> None:
    """The other comes, and hears what was said to it."""
    early, late = parties[first], parties[1 - first]
    late.enter(number, *(party.member for party in parties))
    heard = late.hears()
    run(parties, lambda: heard.done)
    assert heard.value == number
    assert not early.misses(late)


@either_first
def test_who_is_in_the_next_epoch_first_reaches_one_that_still_misses_it(first: int, parties: Parties) -> None:
    early, late = parties[first], parties[1 - first]
    goes_first(parties, 2, first)
    run(parties, lambda: late.misses(early) and late.meets(early))
    follows(parties, 2, first)


@either_first
def test_a_connection_that_breaks_before_both_are_in_its_epoch_is_made_again(first: int, parties: Parties) -> None:
    early, late = parties[first], parties[1 - first]
    goes_first(parties, 2, first)
    run(parties, lambda: late.misses(early) and late.meets(early) and early.meets(late))
    early.mesh.lose(late.member.uid, "it broke again")
    run(parties, lambda: not late.meets(early))
    goes_first(parties, 3, first)
    follows(parties, 3, first)


@either_first
def test_who_is_taken_for_connected_by_one_that_has_not_noticed_the_end_calls_again(
    first: int, parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = parties[first], parties[1 - first]
    refused, again = threading.Event(), threading.Event()

    def sleep(seconds: float) -> None:
        if refused.is_set():
            time.sleep(seconds)
            return
        refused.set()
        again.wait(DEADLINE)

    monkeypatch.setattr(connect, "time", SimpleNamespace(sleep=sleep))
    kept = held(early, late)
    goes_first(parties, 2, first)
    run(parties, refused.is_set)
    kept.close()
    run(parties, lambda: late.misses(early))
    again.set()
    follows(parties, 2, first)
