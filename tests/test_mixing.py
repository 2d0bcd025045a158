"""What some agents mix among themselves: along graphs, by push-sum, and within machines."""

from __future__ import annotations

from math import log

import pytest
import torch
from contracts.parts import all_codecs
from test_graphs import GRAPHS
from torch import Tensor
from worlds import STREAMS, run

from stretto.codecs import Identity
from stretto.core import Cell, Codec, Like, Link, Mixing, Strategy
from stretto.errors import PeerLost, UsageError
from stretto.exchanges import Gossip, PushSum, Within
from stretto.graphs import Complete, Matching, OnePeer, Peers, RandomPush, Ring, matrix, spectral_gap
from stretto.sim import World
from stretto.text import parse

BALANCED = [graph for graph in GRAPHS if graph.balanced]
LOSSY = [codec for codec in all_codecs() if codec.passes == 1]
SEED = 5
PLAIN = Identity()

along_balanced = pytest.mark.parametrize("graph", BALANCED, ids=str)
along_any = pytest.mark.parametrize("graph", GRAPHS, ids=str)


def numbers(size: int, numel: int = 40, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size)
    return [torch.randn(numel, generator=generator, dtype=torch.float64).to(dtype) for _ in range(size)]


def cells(xs: list[Tensor]) -> list[Cell]:
    return [Cell(Like.of(x, seed=SEED, own=rank)) for rank, x in enumerate(xs)]


def mixed(
    world: World,
    mixing: Mixing,
    xs: list[Tensor],
    known: list[Cell] | None = None,
    *,
    clock: int = 0,
    codec: Codec = PLAIN,
) -> list[Tensor]:
    """What one mixing makes of ``xs``, by rank."""
    known = cells(xs) if known is None else known

    async def once(link: Link) -> Tensor:
        return await mixing.mix(link, xs[link.rank], codec, known[link.rank], clock)

    return world.run(once)


def distance(xs: list[Tensor]) -> float:
    """From consensus."""
    stacked = torch.stack(xs)
    return float((stacked - stacked.mean(0)).norm())


@along_balanced
@pytest.mark.parametrize("size", [1, 2, 3, 6, 8])
def test_gossip_multiplies_by_the_matrix_of_its_graph(graph: Peers, size: int) -> None:
    xs = numbers(size)
    before = [x.clone() for x in xs]
    for clock in range(4):
        out = mixed(World(size), Gossip(graph), xs, clock=clock)
        assert torch.allclose(torch.stack(out), matrix(graph, size, clock, SEED) @ torch.stack(xs), atol=1e-14)
        assert all(
            torch.equal(x, old) and y.data_ptr() != x.data_ptr() for x, y, old in zip(xs, out, before, strict=True)
        )


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_gossip_on_the_complete_graph_is_the_mean_the_same_bits_everywhere(size: int) -> None:
    xs = numbers(size, dtype=torch.float32)
    out = mixed(World(size), Gossip(Complete()), xs)
    assert all(torch.equal(y, out[0]) for y in out)
    assert torch.allclose(out[0].double(), torch.stack(xs).double().mean(0), atol=1e-6)


@along_balanced
def test_gossip_keeps_the_mean_to_a_millionth(graph: Peers) -> None:
    world, xs = World(8), numbers(8, dtype=torch.float32)
    mean = torch.stack(xs).double().mean(0)
    for clock in range(50):
        xs = mixed(world, Gossip(graph), xs, clock=clock)
    assert (torch.stack(xs).double().mean(0) - mean).abs().max() < 1e-6


@pytest.mark.parametrize("graph", [g for g in BALANCED if g not in (Matching(), OnePeer(), Complete())], ids=str)
@pytest.mark.parametrize("size", [3, 4, 6, 12, 16])
def test_consensus_comes_at_the_rate_that_the_gap_predicts(graph: Peers, size: int) -> None:
    left = 1 - spectral_gap(graph, size)
    world, xs = World(size), numbers(size)
    last = min(80, int(log(1e-11) / log(left))) if left > 1e-9 else 1
    distances = [distance(xs)]
    for clock in range(last):
        xs = mixed(world, Gossip(graph), xs, clock=clock)
        distances.append(distance(xs))
    if left < 1e-9:
        assert distances[1] < 1e-12
    else:
        half = last // 2
        assert (distances[last] / distances[half]) ** (1 / (last - half)) == pytest.approx(left, rel=0.1)


@pytest.mark.parametrize(("size", "period"), [(4, 2), (8, 3), (6, 3), (7, 3)])
def test_one_peer_shrinks_distances_as_its_period_predicts(size: int, period: int) -> None:
    left = 1 - spectral_gap(OnePeer(), size)
    world, xs = World(size), numbers(size)
    distances = [distance(xs)]
    for clock in range(5 * period):
        xs = mixed(world, Gossip(OnePeer()), xs, clock=clock)
        distances.append(distance(xs))
    if left < 1e-9:
        assert distances[period] < 1e-12
    else:
        assert (distances[-1] / distances[period]) ** (1 / 4) == pytest.approx(left, rel=0.1)


@pytest.mark.parametrize("size", [4, 5, 8])
def test_random_pairs_shrink_squared_distances_as_predicted(size: int) -> None:
    world, xs = World(size), numbers(size, 200)
    left = [distance(mixed(world, Gossip(Matching()), xs, clock=c)) ** 2 / distance(xs) ** 2 for c in range(100)]
    assert sum(left) / len(left) == pytest.approx(1 - spectral_gap(Matching(), size), rel=0.1)


def test_half_the_rate_goes_half_the_way() -> None:
    xs = numbers(4)
    out = mixed(World(4), Gossip(Ring(), rate=0.5), xs)
    weights = (torch.eye(4, dtype=torch.float64) + matrix(Ring(), 4)) / 2
    assert torch.allclose(torch.stack(out), weights @ torch.stack(xs), atol=1e-14)


def test_a_changing_graph_takes_one_turn_a_mixing_however_seldom_that_is() -> None:
    world, xs = World(4), numbers(4)
    for step in (1, 3):
        xs = mixed(world, Gossip(OnePeer(), every=2), xs, clock=step)
    assert distance(xs) < 1e-12


@pytest.mark.parametrize("codec", LOSSY, ids=str)
@pytest.mark.parametrize("mixing", [Gossip(Matching(), rate=0.5), Gossip(Ring()), PushSum(RandomPush())], ids=str)
def test_no_codec_loses_anything_of_the_sum(mixing: Mixing, codec: Codec) -> None:
    """Also not where agents are left over, or heard by nobody, and codecs draw."""
    size, xs = 5, numbers(5, 300, torch.float32)
    world, known, total = World(size), cells(xs), torch.stack(xs).double().sum(0)
    for clock in range(6):
        xs = mixed(world, mixing, xs, known, clock=clock, codec=codec)
        shares = [float(cell.state["weight"]) if isinstance(mixing, PushSum) else 1.0 for cell in known]
        summed = sum(share * x.double() for share, x in zip(shares, xs, strict=True))
        scale = max(float(x.abs().max()) for x in xs) + float(total.abs().max())
        assert (summed - total).abs().max() < 2e-5 * scale


def test_what_is_drawn_alike_loses_of_differences_only() -> None:
    world, xs, known = World(6), numbers(6), cells(numbers(6))
    for clock in range(150):
        xs = mixed(
            world, Gossip(Complete()), xs, known, clock=clock, codec=parse("randomk(0.25, scaled=false)", "codec")
        )
    assert distance(xs) < 1e-9


def test_int8_brings_agents_together_up_to_its_rounding() -> None:
    world, xs = World(6), numbers(6, dtype=torch.float32)
    first = distance(xs)
    for clock in range(60):
        xs = mixed(world, Gossip(Ring()), xs, clock=clock, codec=parse("int8", "codec"))
    assert distance(xs) < 0.02 * first


@pytest.mark.parametrize("mixing", [Gossip(Ring()), PushSum(RandomPush())], ids=str)
def test_a_codec_that_needs_the_mean_of_all_is_refused_in_words(mixing: Mixing) -> None:
    with pytest.raises(UsageError, match=r"lowrank.* second pass .*int8"):
        mixed(World(3), mixing, numbers(3), codec=parse("feedback(lowrank(2))", "codec"))


@along_any
@pytest.mark.parametrize("text", ["identity", "int8", "topk(0.1)"])
def test_an_agent_sends_a_payload_to_each_whom_it_tells_and_to_nobody_else(graph: Peers, text: str) -> None:
    """Push-sum sends 8 bytes more."""
    size, xs, codec = 8, numbers(8, 500, torch.float32), parse(text, "codec")
    for clock in range(3):
        rows = [graph.row(rank, size, clock, SEED) for rank in range(size)]
        tells = {(rank, peer) for rank, row in enumerate(rows) for peer in row.tells}
        for mixing, number in ((Gossip(graph), 0), (PushSum(graph), 8)) if graph.balanced else ((PushSum(graph), 8),):
            world = World(size)
            mixed(world, mixing, xs, clock=clock, codec=codec)
            assert set(world.traffic()) == tells
            nbytes = codec.size(Like.of(xs[0])) + number
            assert world.bytes == [len(row.tells) * nbytes for row in rows]


@along_any
@pytest.mark.parametrize("size", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_push_sum_weights_always_sum_to_the_number_of_agents_and_z_comes_to_the_mean(
    graph: Peers, size: int, rate: float
) -> None:
    world, xs = World(size), numbers(size)
    known, mean = cells(xs), torch.stack(xs).mean(0)
    first = distance(xs)
    for clock in range(150):
        xs = mixed(world, PushSum(graph, rate), xs, known, clock=clock)
        weights = [float(cell.state["weight"]) for cell in known]
        assert sum(weights) == pytest.approx(size, abs=1e-12)
        assert min(weights) > 0
    assert max(float((x - mean).abs().max()) for x in xs) < 1e-3 * max(first, 1)


def test_every_agents_steps_count_alike_however_much_it_hears() -> None:
    """Each adds a number of its own in every round; in the end all have the mean of all that was added."""
    size, rounds = 5, 60
    world, steps = World(size), [torch.full((3,), float(rank), dtype=torch.float64) for rank in range(size)]
    zs = [torch.zeros(3, dtype=torch.float64) for _ in range(size)]
    known = cells(zs)
    for clock in range(2 * rounds):
        if clock < rounds:
            zs = [z + step for z, step in zip(zs, steps, strict=True)]
        zs = mixed(world, PushSum(RandomPush()), zs, known, clock=clock)
    assert all(torch.allclose(z, torch.full((3,), 2.0 * rounds, dtype=torch.float64), rtol=1e-4) for z in zs)


def test_who_stands_next_to_a_death_is_told_and_others_do_not_notice() -> None:
    world, xs = World(6), numbers(6)
    world.kill(0, after_messages=0)
    known = cells(xs)

    async def once(link: Link) -> Tensor:
        return await Gossip(Ring()).mix(link, xs[link.rank], Identity(), known[link.rank], 0)

    ends = world.run(once, keep_errors=True)
    assert [type(ends[rank]) for rank in (1, 5)] == [PeerLost, PeerLost]
    assert ends[1].peer == 0
    assert torch.allclose(ends[3], (xs[2] + xs[3] + xs[4]) / 3)


@pytest.mark.parametrize("hosts", [(0, 0, 1, 0, 1, 2), (0, 0, 0, 0), (0, 1, 2), (0,)])
@pytest.mark.parametrize("topology", ["auto", "ring", "star", "butterfly"])
def test_within_machines_is_the_mean_of_each_and_nothing_crosses(hosts: tuple[int, ...], topology: str) -> None:
    world, xs = World(len(hosts), hosts=hosts), numbers(len(hosts), 1000)
    out = mixed(world, Within(parse(topology, "topology")), xs, codec=parse("int4", "codec"))
    for host in set(hosts):
        here = [rank for rank, where in enumerate(hosts) if where == host]
        assert all(torch.equal(out[rank], out[here[0]]) for rank in here)
        assert torch.allclose(out[here[0]], torch.stack([xs[rank] for rank in here]).mean(0), atol=1e-14)
    assert all(hosts[src] == hosts[dst] for src, dst in world.traffic())
    assert all(torch.equal(x, y) for x, y in zip(xs, numbers(len(hosts), 1000), strict=True))


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("mixing", [Gossip(Ring()), PushSum(RandomPush()), Within()], ids=str)
def test_sockets_give_the_bits_of_the_simulated_network(kind: str, mixing: Mixing) -> None:
    """Five mixings after one another, each on the same link; codecs draw."""
    xs, codec = numbers(4, 5000, torch.float32), parse("int8(stochastic=true)", "codec")

    async def often(link: Link) -> Tensor:
        x, cell = xs[link.rank], Cell(Like.of(xs[link.rank], seed=SEED, own=link.rank))
        for clock in range(5):
            x = await mixing.mix(link, x, codec, cell, clock)
        return x

    real, simulated = run(kind, 4, often), run("sim", 4, often)
    assert all(torch.equal(a, b) for a, b in zip(real, simulated, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "gossip_sgd",
        "gossip_sgd(torus, 4, rate=0.5, codec=int8)",
        "gossip_sgd(given('0-1, 1-2'))",
        "push_sum",
        "push_sum(random_push, 2)",
        "hierarchical_local_sgd",
        "hierarchical_local_sgd(2, 32, topology=ring, codec=int4)",
    ],
)
def test_a_mixing_strategy_has_a_text(text: str) -> None:
    strategy = parse(text, "strategy")
    assert isinstance(strategy, Strategy)
    assert (str(strategy), strategy.signal) == (text, "drift")
    assert strategy.beside is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gossip_sgd(every=0)", "steps must be a whole number from 1 on"),
        ("gossip_sgd(rate=0)", "gossip.ring, 0.: rate=0 .* 1 is usual"),
        ("gossip_sgd(rate=1.5)", "rate=1.5"),
        ("gossip_sgd(directed_ring)", "graph=directed_ring .*exponential"),
        ("gossip_sgd(weights('1/2 2/3; 1/2 1/3'))", "use push_sum"),
        ("gossip_sgd(star)", "star is not a graph; known: complete"),
        ("gossip_sgd(codec=lowrank)", "codec=lowrank .* codec=int8"),
        ("push_sum(codec=feedback(lowrank))", "codec=int8"),
        ("push_sum(every=-1)", "whole number"),
        ("hierarchical_local_sgd(64, 4)", "inner=64 must be below outer=4; inner=4, outer=64"),
        ("hierarchical_local_sgd(0)", "from 1 on"),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(text, "strategy")


def test_the_links_own_all_reduce_is_not_of_one_machine() -> None:
    with pytest.raises(UsageError, match="topology=auto"):
        Within(parse("native", "topology"))
