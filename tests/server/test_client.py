"""An agent's side of servers: whom others wait for, and what it asks again."""

from __future__ import annotations

import torch
from torch import Tensor

from stretto.codecs import Identity
from stretto.core import Cell, Like, Payload
from stretto.server import Server, plan_slots
from stretto.server.client import Client
from stretto.server.messages import END, GRANTED, LEASE, PAUSE, PUSH, SAME, WAIT, Request, numbers
from stretto.server.space import Extent, Slot

SLOTS = plan_slots((Extent("float32", ((8, 0),), 0),), 0)
SAMPLES = numbers(GRANTED, 0, 5, 0, 1.0, 0, 0, 2)


class Memory:
    def part(self, slot: Slot) -> Payload:
        return (torch.ones(slot.elements),)

    def values(self, slot: Slot) -> Tensor:
        return torch.zeros(slot.elements)


class Asking:
    """A client that was given samples, and what it asks: kinds and weights; ``ended``: orders."""

    def __init__(self, staleness: int) -> None:
        self.asked: list[tuple[int, float]] = []
        self.ended: list[int] = []
        cells = [Cell(Like((slot.elements,), torch.float32)) for slot in SLOTS]
        done = lambda number, about: self.ended.append(number)  # noqa: E731
        self.client = Client(1, SLOTS, Server(staleness), Identity(), cells, Memory(), done, lambda x: None)
        self.client.enter(self.ask)
        self.want(1)
        self.client.leased((SAMPLES,))
        self.asked.clear()

    def ask(self, slot: int, request: Request, body: Payload) -> None:
        self.asked.append((request.kind, request.weight))

    def want(self, number: int) -> None:
        """Samples."""
        self.client.lease(number, [2, 0, 0], False, 0)

    def push(self, number: int) -> None:
        self.client.push(number, 1.0, 5, torch.zeros(0, dtype=torch.float64))


def test_nobody_waits_for_who_has_come_to_the_end() -> None:
    it = Asking(1)
    it.want(2)
    it.client.leased((numbers(END, 0),))
    assert it.asked == [(LEASE, 0), (PAUSE, 0)] and it.ended == [1, 2]


def test_nobody_waits_for_who_waits_itself_whatever_it_asks_again_in_another_epoch() -> None:
    """A push says that its agent counts, so what it says of that comes after it."""
    it = Asking(1)
    it.push(2)
    it.want(3)
    it.client.leased((numbers(WAIT, 0),))
    it.asked.clear()
    it.client.leave()
    it.client.enter(it.ask)
    assert it.asked == [(PUSH, 1), (PAUSE, 0), (LEASE, 0)]


def test_with_staleness_0_it_is_the_end_only_when_the_step_before_it_is_whole() -> None:
    """Should that be undone for a death, the part of the dead is dealt to who is left."""
    it = Asking(0)
    it.push(2)
    it.want(3)
    it.client.leased((numbers(END, 0),))
    assert it.ended == [1]
    it.asked.clear()
    it.client.answered(0, (numbers(SAME, 1, 1, 1),))
    assert it.ended == [1, 2] and it.asked == [(LEASE, 0)]
    it.client.leased((numbers(END, 0),))
    assert it.ended == [1, 2, 3]
