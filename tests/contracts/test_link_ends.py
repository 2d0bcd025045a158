"""When somebody goes, or something run together fails, exactly those who need it are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from worlds import run

from contracts.talking import MB, Gone, arrived, every_kind, vector
from stretto.core import Link
from stretto.errors import PeerLost


@every_kind
def test_together_returns_in_order(kind: str) -> None:
    async def wait(link: Link, seconds: float) -> float:
        await link.sleep(seconds)
        return seconds

    async def once(link: Link) -> list[Any]:
        return await link.together(wait(link, 0.02), wait(link, 0.0), wait(link, 0.01))

    async def nothing(link: Link) -> list[Any]:
        return await link.together()

    assert run(kind, 2, once) == [[0.02, 0.0, 0.01]] * 2
    assert run(kind, 1, nothing) == [[]]


@every_kind
def test_the_first_error_of_together_ends_the_others(kind: str) -> None:
    ended: list[str] = []

    async def fail(link: Link) -> None:
        await link.sleep(0.001)
        raise Gone("first")

    async def wait(link: Link) -> None:
        try:
            await link.sleep(1000)
        finally:
            ended.append("closed")

    async def once(link: Link) -> str:
        with pytest.raises(Gone, match="first"):
            await link.together(wait(link), fail(link), wait(link))
        return "told"

    assert run(kind, 1, once) == ["told"]
    assert ended == ["closed", "closed"]


@every_kind
def test_when_a_peer_goes_those_who_wait_for_it_are_told_and_the_others_go_on(kind: str) -> None:
    async def once(link: Link) -> Any:
        others = [r for r in range(link.size) if r != link.rank]
        for r in others:
            link.post(r, (vector(link.rank),))
        for r in others:
            await link.recv(r)
        if link.rank == 2:
            raise Gone
        if link.rank == 0:
            try:
                await link.recv(2, 1)
            except PeerLost as e:
                link.post(1, (vector(e.peer),), 1)
                await link.drain()
                return "told"
        return await arrived(link, 0, 1)

    ends = run(kind, 3, once, keep_errors=True)
    assert ends[:2] == ["told", [2.0]] and isinstance(ends[2], Gone)


@every_kind
def test_what_a_peer_sent_before_it_went_still_arrives(kind: str) -> None:
    async def once(link: Link) -> Any:
        if link.rank == 0:
            link.post(1, (vector(1),), 1)
            link.post(1, (vector(2),), 2)
            await link.drain()
            await link.recv(1, 3)
            raise Gone
        await link.recv(0, 2)
        link.post(0, (vector(0),), 3)
        with pytest.raises(PeerLost):
            await link.recv(0, 9)
        return await arrived(link, 0, 1)

    assert run(kind, 2, once, keep_errors=True)[1] == [1.0]


@every_kind
def test_a_receive_that_is_half_filled_when_its_sender_goes_fails_too(kind: str) -> None:
    async def once(link: Link) -> Any:
        if link.rank == 0:
            link.post(1, (torch.zeros(16 * MB),), 1)
            await link.recv(1, 3)
            raise Gone
        coming = link.recv(0, 1, torch.zeros(16 * MB))
        other = link.recv(0, 2)
        link.post(0, (vector(0),), 3)
        try:
            await coming
        except PeerLost as e:
            return e.peer
        with pytest.raises(PeerLost):
            await other
        return 0

    assert run(kind, 2, once, keep_errors=True)[1] == 0
