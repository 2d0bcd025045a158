"""However much is under way, and in whatever order it is awaited, links hold little and stop nowhere."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable
from typing import Any

import pytest
import torch
from worlds import Lived, raise_first, run, run_streams

from contracts.talking import MB, arrived, every_kind, every_stream, numbered, vector
from stretto.core import ANY, Link, Message
from stretto.links import channel
from stretto.links.channel import WINDOW


@every_kind
def test_large_messages_both_ways_at_once_do_not_deadlock(kind: str) -> None:
    """Each side consumes in the reverse order of posting, and more than the window is under way."""
    count, numel = 6, 3 * MB // 4

    async def once(link: Link) -> bool:
        other = 1 - link.rank
        for i in range(count):
            link.post(other, (numbered(numel, 10 * link.rank + i),), i)
        right = True
        for i in reversed(range(count)):
            got = (await link.recv(other, i)).payload[0]
            right = right and torch.equal(got, numbered(numel, 10 * other + i))
        await link.drain()
        return right

    assert count * numel * 4 > 4 * WINDOW
    assert run(kind, 2, once) == [True, True]


@every_kind
def test_what_any_waits_for_may_be_behind_more_than_the_window(kind: str) -> None:
    async def once(link: Link) -> list[float]:
        if link.rank == 0:
            for _ in range(4):
                link.post(1, (torch.zeros(WINDOW // 4),), 1)
            link.post(1, (vector(5),), 2)
            await link.drain()
            return []
        last = await arrived(link, ANY, 2)
        for _ in range(4):
            await link.recv(ANY, 1)
        return last

    assert run(kind, 2, once)[1] == [5.0]


@every_kind
def test_receives_posted_ahead_into_tensors_stream_through(kind: str) -> None:
    async def once(link: Link) -> bool:
        left, right = (link.rank - 1) % link.size, (link.rank + 1) % link.size
        rooms = [torch.zeros(MB) for _ in range(3)]
        coming = [link.recv(left, i, room) for i, room in enumerate(rooms)]
        for i in range(3):
            link.post(right, (numbered(MB, 10 * link.rank + i),), i)
        for c in coming:
            await c
        await link.drain()
        return all(torch.equal(room, numbered(MB, 10 * left + i)) for i, room in enumerate(rooms))

    assert all(run(kind, 3, once))


@every_kind
def test_after_drain_a_tensor_may_be_written_again(kind: str) -> None:
    async def once(link: Link) -> list[float]:
        if link.rank == 0:
            x = torch.empty(MB)
            for i in range(6):
                x.fill_(i)
                link.post(1, (x,), 0)
                await link.drain()
            return []
        await link.sleep(0.01)
        return [(await link.recv(0, 0)).payload[0].unique().tolist()[0] for _ in range(6)]

    assert run(kind, 2, once)[1] == [0, 1, 2, 3, 4, 5]


@every_kind
def test_two_coroutines_may_drain_at_once(kind: str) -> None:
    async def send(link: Link, tag: int) -> str:
        link.post(1, (torch.zeros(MB),), tag)
        await link.drain()
        return "drained"

    async def once(link: Link) -> list[Any]:
        if link.rank == 0:
            return await link.together(send(link, 1), send(link, 2))
        for tag in (2, 1):
            await link.recv(0, tag)
        return []

    assert run(kind, 2, once)[0] == ["drained", "drained"]


@every_stream
def test_one_who_does_not_take_holds_a_window_and_a_message_at_most(kind: str) -> None:
    message = 1 * MB

    async def once(link: Any) -> int:
        if link.rank == 0:
            for _ in range(40):
                link.post(1, (torch.zeros(message // 4),), 1)
            await link.recv(1, 2)
            await link.drain()
            return 0
        held = previous = -1
        while held != previous or held < WINDOW:
            previous = held
            await link.sleep(0.05)
            held = link.mesh.totals().received
        link.post(0, (vector(0),), 2)
        for _ in range(40):
            await link.recv(0, 1)
        return held

    lives = run_streams(kind, 2, once)
    raise_first(lives)
    framing = 64 * 40
    assert isinstance(lives[1], Lived)
    assert WINDOW <= lives[1].result <= WINDOW + message + framing


@pytest.mark.parametrize("seed", range(12))
def test_no_order_of_receives_runs_dry_of_credit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some messages are taken as they come and others later: neither alone fills the window, together they do."""
    monkeypatch.setattr(channel, "WINDOW", 1 << 16)
    draw = random.Random(seed)
    sizes = [draw.randrange(1 << 10, 1 << 14) for _ in range(60)]
    order = list(range(len(sizes)))
    draw.shuffle(order)
    ahead = draw.randrange(1, 12)

    async def once(link: Link) -> bool:
        other = 1 - link.rank
        for tag, size in enumerate(sizes):
            link.post(other, (torch.full((size,), tag, dtype=torch.uint8),), tag)
        posted: deque[Awaitable[Message]] = deque()
        right = True
        for place in range(len(order) + ahead):
            if place < len(order):
                tag = order[place]
                posted.append(link.recv(other, tag, torch.empty(sizes[tag], dtype=torch.uint8)))
            if place >= ahead:
                message = await posted.popleft()
                right = right and bool((message.payload[0] == order[place - ahead]).all())
        await link.drain()
        return right

    assert run("unix", 2, once) == [True, True]
