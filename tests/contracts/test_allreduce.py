"""What an all-reduce promises along every topology, in the simulated world."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from contracts.parts import graphs
from stretto.codecs import Identity
from stretto.core import Cell, Like, Link, Topology
from stretto.errors import PeerLost, UsageError
from stretto.exchanges import AllReduce
from stretto.sim import SimNetwork, World
from stretto.topologies import Auto, Native, Ring, Star
from stretto.topologies.butterfly import WHOLE, Butterfly

every_graph = pytest.mark.parametrize("topology", graphs(), ids=str)
CHUNK = 512
SLACK = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 0.05}


def reduce(world: World, xs: list[Tensor], topology: Topology, chunk: int | None = CHUNK) -> list[Tensor]:
    async def once(link: Link) -> Tensor:
        x = xs[link.rank].clone()
        mean = await AllReduce(topology, chunk).mean(link, x, Identity(), Cell(Like.of(x)))
        return mean

    return world.run(once)


def numbers(size: int, numel: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(numel, generator=generator, dtype=torch.float64).to(dtype) for _ in range(size)]


def check_right(xs: list[Tensor], means: list[Tensor]) -> None:
    """Within the dtype's slack of a float64 mean (relative to the mean magnitude), and the same bits everywhere."""
    exact = torch.stack(xs).double().mean(0)
    scale = torch.stack(xs).double().abs().mean(0)
    for mean in means:
        assert mean.dtype == xs[0].dtype
        assert torch.equal(mean, means[0])
        assert ((mean.double() - exact).abs() <= SLACK[mean.dtype] * scale).all()


@every_graph
@pytest.mark.parametrize("size", range(1, 18))
def test_every_agent_gets_the_same_right_mean(topology: Topology, size: int) -> None:
    for numel in (0, 1, size - 1, 1003):
        xs = numbers(size, numel)
        check_right(xs, reduce(World(size), xs, topology))


@every_graph
@pytest.mark.parametrize("dtype", SLACK, ids=str)
def test_every_dtype_is_averaged_in_itself(topology: Topology, dtype: torch.dtype) -> None:
    xs = numbers(5, 777, dtype)
    check_right(xs, reduce(World(5), xs, topology))


@every_graph
@given(
    hosts=st.lists(st.integers(0, 3), min_size=1, max_size=17).map(tuple),
    numel=st.integers(0, 600),
    chunk=st.sampled_from([None, 4, 60, 512]),
    seed=st.integers(0, 99),
)
def test_any_size_place_and_chunk_is_right(
    topology: Topology, hosts: tuple[int, ...], numel: int, chunk: int | None, seed: int
) -> None:
    xs = numbers(len(hosts), numel, seed=seed)
    check_right(xs, reduce(World(len(hosts), hosts=hosts), xs, topology, chunk))


@every_graph
def test_bits_depend_on_data_and_graph_but_not_on_the_network(topology: Topology) -> None:
    """(``auto`` takes its graph from the agreed delay and rate: those stay as they are.)"""
    xs = numbers(7, 1000)
    calm = reduce(World(7), xs, topology)[0]
    uneven = {} if isinstance(topology, Auto) else {2: 1e5, 3: 1e6}
    for seed in range(3):
        rough = SimNetwork(jitter=5e-3, loss=0.1, up=uneven, down=uneven)
        assert torch.equal(reduce(World(7, rough, seed=seed), xs, topology)[0], calm)


@every_graph
def test_a_nan_of_one_agent_is_seen_by_all(topology: Topology) -> None:
    xs = numbers(4, 100)
    xs[2][37] = float("nan")
    for mean in reduce(World(4), xs, topology):
        assert mean.isnan().nonzero().tolist() == [[37]]


@every_graph
def test_tensors_of_any_shape_and_number_are_reduced_in_place(topology: Topology) -> None:
    async def once(link: Link) -> bool:
        xs = [torch.full((3, 5), float(link.rank)), torch.full((), 1.0), torch.full((2, 1, 4), 2.0 * link.rank)]
        means = [await AllReduce(topology).mean(link, x, Identity(), Cell(Like.of(x))) for x in xs]
        firsts = [m.flatten()[0].item() for m in means]
        return all(m.data_ptr() == x.data_ptr() for m, x in zip(means, xs, strict=True)) and firsts == [1, 1, 2]

    assert World(3).run(once) == [True] * 3


@every_graph
@pytest.mark.parametrize("size", [2, 5, 8])
def test_bytes_and_messages_are_what_the_graph_says(topology: Topology, size: int) -> None:
    world = World(size)
    count = 64 * size * 3 if not isinstance(topology, Butterfly | Auto) else WHOLE // 4 // size * size + size
    reduce(world, numbers(size, count), topology, chunk=1 << 30)
    graph = topology.graph(world.hosts) if not isinstance(topology, Auto) else None
    total = 2 * (size - 1) * count * 4
    assert sum(world.bytes) == total
    if graph is not None:
        edges = [sum((r.parent != rank) + len(r.children) for r in graph.roles(rank)) for rank in range(size)]
        assert world.messages == edges


@every_graph
@pytest.mark.parametrize("victim", range(4))
def test_a_death_gives_peer_lost_and_nobody_hangs(topology: Topology, victim: int) -> None:
    for after in (0, 1, 2, 5):
        world = World(4, hosts=(0, 0, 1, 1))
        world.kill(victim, after_messages=after)

        async def once(link: Link) -> str:
            x = torch.ones(4000)
            await AllReduce(topology, CHUNK).mean(link, x, Identity(), Cell(Like.of(x)))
            assert torch.equal(x, torch.ones(4000))
            return "whole"

        ends = world.run(once, keep_errors=True)
        assert ends[victim] in (None, "whole")
        survivors = [end for rank, end in enumerate(ends) if rank != victim]
        assert all(end == "whole" or (isinstance(end, PeerLost) and end.peer == victim) for end in survivors)
        if after == 0:
            assert any(isinstance(end, PeerLost) for end in survivors)


def test_a_ring_on_an_ideal_network_takes_the_bandwidth_bound() -> None:
    size, nbytes, rate = 8, 64 << 20, 125e6
    world = World(size, SimNetwork(delay=200e-6, rate=rate))
    reduce(world, [torch.empty(nbytes // 4, device="meta")] * size, Ring(), None)
    bound = 2 * (size - 1) / size * nbytes / rate
    assert bound <= world.now <= 1.03 * bound


@every_graph
def test_the_predicted_time_is_near_the_simulated_one(topology: Topology) -> None:
    for nbytes in (4096, 1 << 20, 1 << 24):
        world = World(8, SimNetwork(delay=1e-3, rate=125e6))
        reduce(world, [torch.empty(nbytes // 4, device="meta")] * 8, topology, None)
        assert 0.5 < topology.seconds(world.hosts, nbytes, world.network) / world.now < 2.5


def test_a_thousand_agents_send_a_number_of_messages_linear_in_theirs() -> None:
    world = World(1024)
    reduce(world, [torch.empty(64, device="meta")] * 1024, Ring(), None)
    trees = 64
    assert sum(world.messages) == 2 * 1023 * trees


def test_meta_tensors_cost_time_and_bytes_but_no_memory() -> None:
    world = World(4, SimNetwork(delay=0, rate=1e9))
    reduce(world, [torch.empty(7_000_000_000, device="meta")] * 4, Ring(), 1 << 28)
    assert world.bytes == [2 * 3 * 7_000_000_000] * 4
    assert world.now == pytest.approx(1.5 * 28, rel=0.02)


def test_native_uses_the_link_and_auto_prefers_it() -> None:
    xs = numbers(3, 50)
    for topology in (Native(), Auto()):
        world = World(3, native=True)
        check_right(xs, reduce(world, xs, topology))
        assert sum(world.messages) == 0


def test_native_on_a_link_without_it_says_which_have_it() -> None:
    with pytest.raises(UsageError, match="shm"):
        reduce(World(2), numbers(2, 5), Native())


def test_what_has_no_mean_is_refused() -> None:
    async def once(link: Link, x: Tensor) -> Any:
        await AllReduce(Star()).mean(link, x, Identity(), Cell(Like.of(x)))

    with pytest.raises(UsageError, match="int64"):
        World(2).run(lambda link: once(link, torch.ones(3, dtype=torch.int64)))
    with pytest.raises(UsageError, match="contiguous"):
        World(2).run(lambda link: once(link, torch.ones(3, 3).T[:2]))
