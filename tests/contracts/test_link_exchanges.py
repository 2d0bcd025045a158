"""Exchanges over every link: the simulator's bits, told apart, and counted to the byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from worlds import Lived, Make, raise_first, run, run_streams

from contracts.parts import all_codecs, graphs
from contracts.talking import MB, bits, every_kind, every_stream, met, numbered
from stretto.codecs import Identity
from stretto.core import Cell, Codec, Like, Link, Named, Topology
from stretto.exchanges import AllReduce
from stretto.exchanges.owners import parts_of
from stretto.topologies import Ring

HEADER = 34
"""Bytes before those of a message of one vector: what docs/codecs.md says."""


def reduced(kind: str, size: int, topology: Topology, numel: int) -> list[list[int]]:
    async def once(link: Link) -> list[int]:
        x = numbered(numel, link.rank)
        mean = await AllReduce(topology).mean(link, x, Identity(), Cell(Like.of(x)))
        return bits(mean)

    return run(kind, size, once)


@every_kind
@pytest.mark.parametrize("topology", graphs(), ids=str)
def test_every_topology_gives_the_simulators_bits(kind: str, topology: Topology) -> None:
    for size, numel in ((2, 1001), (3, 40_000), (5, 1001)):
        assert reduced(kind, size, topology, numel) == reduced("sim", size, topology, numel)


@every_stream
def test_exchanges_share_one_connection_and_are_told_apart(kind: str) -> None:
    """Five at once, each of more than the window; the receivers start with the one that was begun last."""
    numel, exchanges = 2 * MB, 5

    async def send(link: Any, number: int) -> None:
        channel = link.mesh.link(number)
        for i in range(2):
            channel.post(1 - link.rank, (numbered(numel, number + i),), 3)
        await channel.drain()

    async def receive(link: Any, number: int) -> bool:
        channel = link.mesh.link(number)
        got = [(await channel.recv(1 - link.rank, 3)).payload[0] for _ in range(2)]
        return all(torch.equal(x, numbered(numel, number + i)) for i, x in enumerate(got))

    async def take_all(link: Any) -> list[bool]:
        return [await receive(link, number) for number in reversed(range(100, 100 + exchanges))]

    async def once(link: Any) -> tuple[list[bool], int]:
        sends = [send(link, number) for number in range(100, 100 + exchanges)]
        *_, right = await link.together(*sends, take_all(link))
        connections = link.mesh.totals().connections
        await met(link)
        return right, connections

    lives = run_streams(kind, 2, once)
    raise_first(lives)
    assert [life.result for life in lives if isinstance(life, Lived)] == [([True] * exchanges, 1)] * 2


@every_stream
def test_bytes_are_counted_alike_at_both_ends(kind: str) -> None:
    async def once(link: Any) -> tuple[int, int, int]:
        other = 1 - link.rank
        link.post(other, (torch.zeros(100_000),), 1)
        await link.drain()
        await link.recv(other, 1)
        await met(link)
        totals = link.mesh.totals()
        return totals.sent, totals.received, totals.wire_received

    lives = run_streams(kind, 2, once)
    raise_first(lives)
    counts = [life.result for life in lives if isinstance(life, Lived)]
    for sent, received, on_wire in counts:
        frames, goodbye = 3 * 34, 24
        assert sent == 400_000 + frames
        assert received in (sent, sent + goodbye)
        assert on_wire == 0 if kind == "unix" else 400_000 < on_wire < 1.05 * 400_000


@every_stream
@pytest.mark.parametrize("codec", [c for c in all_codecs() if c.exact and not c.summable], ids=str)
def test_a_coded_mean_takes_the_bytes_that_its_codec_says_and_a_header_a_message(kind: str, codec: Codec) -> None:
    """Along a ring each agent sends every other one its part, and then the mean of its own part."""
    like, size = Like((3001,), torch.float32, (Named("w", (3001,)),)), 3

    async def nothing(link: Link) -> None:
        await met(link)

    async def once(link: Link) -> None:
        await met(link)
        await AllReduce(Ring()).mean(link, numbered(3001, link.rank), codec, Cell(like))

    def sent(make: Make) -> list[int]:
        lives = run_streams(kind, size, make)
        raise_first(lives)
        return [life.totals.sent for life in lives if isinstance(life, Lived)]

    parts = [codec.size(like.part(p.start, p.stop, 0)) for p in parts_of(Ring(), (0,) * size, 3001)]
    for part, before, after in zip(parts, sent(nothing), sent(once), strict=True):
        assert after - before == (sum(parts) - part) + (size - 1) * part + 2 * (size - 1) * HEADER
