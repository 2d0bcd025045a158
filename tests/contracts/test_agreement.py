"""Broadcast and agree, in the simulated world."""

from __future__ import annotations

import pytest
import torch

from stretto.core import Link
from stretto.errors import Disagreement, PeerLost
from stretto.exchanges import agree, broadcast
from stretto.sim import SimNetwork, World

sizes = pytest.mark.parametrize("size", [1, 2, 3, 8, 13])


@sizes
def test_everyone_gets_what_the_root_has(size: int) -> None:
    async def once(link: Link, root: int, numel: int) -> bool:
        x = torch.arange(float(numel)) if link.rank == root else torch.zeros(numel)
        await broadcast(link, x, root)
        return torch.equal(x, torch.arange(float(numel)))

    for root in {0, size - 1}:
        for numel in (0, 1, 100_000):
            assert all(World(size).run(lambda link, r=root, k=numel: once(link, r, k)))


@pytest.mark.parametrize("size", range(2, 9))
def test_whoever_has_a_broadcast_knows_that_all_have_begun_it(size: int) -> None:
    """Or its sender could be rounds ahead of somebody when the members change."""

    async def once(link: Link) -> float:
        await link.sleep(1.0 if link.rank == size - 1 else 0.0)
        await broadcast(link, torch.zeros(8))
        return link.now()

    assert min(World(size).run(once)) >= 1.0


def test_a_broadcast_is_passed_on_while_it_comes() -> None:
    async def once(link: Link) -> None:
        await broadcast(link, torch.empty(16 << 20, device="meta"))

    world = World(15, SimNetwork(delay=1e-4, rate=125e6))
    world.run(once)
    assert world.now < 1.1 * 2 * (64 << 20) / 125e6


@sizes
def test_the_same_everywhere_is_agreed_on(size: int) -> None:
    async def once(link: Link) -> str:
        await agree(link, "models", "a\nb\n" * 1000)
        return "same"

    assert World(size).run(once) == ["same"] * size


@pytest.mark.parametrize("odd", [1, 2, 6])
def test_a_difference_is_told_to_all_with_who_and_where(odd: int) -> None:
    async def once(link: Link) -> None:
        await agree(link, "models", f"layer 1\nlayer {2 + (link.rank == odd)}\nlayer 3")

    errors = World(7).run(once, keep_errors=True)
    told = {str(e) for e in errors}
    assert all(isinstance(e, Disagreement) for e in errors) and len(told) == 1
    assert f"models: agent {odd} differs from agent 0 in line 2: agent 0 has 'layer 2', it has 'layer 3'" in told.pop()


def test_an_odd_agent_zero_differs_from_the_first_other() -> None:
    async def once(link: Link) -> None:
        await agree(link, "models", "short" if link.rank == 0 else "short\nand more")

    errors = World(5).run(once, keep_errors=True)
    assert all("agent 1 differs from agent 0 in line 2: agent 0 has '(nothing)'" in str(e) for e in errors)


def test_agreeing_with_the_dead_is_peer_lost() -> None:
    async def once(link: Link) -> None:
        await agree(link, "models", "same")

    world = World(4)
    world.kill(3, after_messages=0)
    errors = world.run(once, keep_errors=True)
    assert all(isinstance(e, PeerLost) and e.peer == 3 for e in errors[:3])
