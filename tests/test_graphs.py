"""Who mixes with whom: the weights of every graph, and how quickly mixing along it brings agents together."""

from __future__ import annotations

from functools import reduce
from math import cos, log2, pi

import pytest
import torch
from torch import Tensor

from stretto.errors import UsageError
from stretto.graphs import (
    Complete,
    Exponential,
    Given,
    Matching,
    OnePeer,
    Peers,
    RandomPush,
    Ring,
    Torus,
    Weights,
    matrix,
    spectral_gap,
)
from stretto.graphs.torus import grid
from stretto.text import names, parse

BY_HAND = ("given('0-1, 1-2, 2-3, 3-1')", "weights('1/2 1/2 0; 1/2 1/4 1/4; 0 1/4 3/4')", "weights('1/2 2/3; 1/2 1/3')")
GRAPHS: list[Peers] = [parse(name, "graph") for name in names("graph") if name not in ("given", "weights")]
GRAPHS += [parse(text, "graph") for text in BY_HAND]
SIZES = (*range(1, 18), 31, 32)

every_graph = pytest.mark.parametrize("graph", GRAPHS, ids=str)


def product(graph: Peers, size: int, clocks: int, seed: int = 0) -> Tensor:
    """What ``clocks`` mixings make of the unit vectors."""
    eye = torch.eye(size, dtype=torch.float64)
    return reduce(lambda out, clock: matrix(graph, size, clock, seed) @ out, range(clocks), eye)


@every_graph
@pytest.mark.parametrize("size", SIZES)
def test_an_agent_gives_away_what_it_has_and_on_balanced_graphs_hears_as_much(graph: Peers, size: int) -> None:
    for clock in range(6):
        weights = matrix(graph, size, clock, seed=3)
        assert (weights >= 0).all() and (weights.diagonal() > 0).all()
        assert (weights.sum(0) - 1).abs().max() < 1e-12
        if graph.balanced:
            assert (weights.sum(1) - 1).abs().max() < 1e-12


@every_graph
@pytest.mark.parametrize("size", SIZES)
def test_who_hears_an_agent_is_whom_it_tells(graph: Peers, size: int) -> None:
    for clock in range(6):
        rows = [graph.row(rank, size, clock, seed=3) for rank in range(size)]
        hears = {(peer, rank) for rank, row in enumerate(rows) for peer, _ in row.hears}
        tells = {(rank, peer) for rank, row in enumerate(rows) for peer in row.tells}
        assert hears == tells
        assert all(src != dst for src, dst in tells)
        assert len(tells) == sum(len(row.tells) for row in rows) == sum(len(row.hears) for row in rows)


@every_graph
@pytest.mark.parametrize("size", SIZES)
def test_what_any_agent_has_reaches_all_in_time(graph: Peers, size: int) -> None:
    assert (product(graph, size, 40) > 0).all()
    assert spectral_gap(graph, size) > 0


@every_graph
def test_an_agent_alone_keeps_what_it_has_and_two_come_to_the_mean(graph: Peers) -> None:
    assert matrix(graph, 1).tolist() == [[1.0]]
    assert spectral_gap(graph, 1) == 1.0
    if "2/3" not in str(graph):
        assert matrix(graph, 2, clock=5).tolist() in ([[0.5, 0.5], [0.5, 0.5]], [[1, 0.5], [0, 0.5]])
        assert spectral_gap(graph, 2) == pytest.approx(1)


@pytest.mark.parametrize("size", range(3, 40))
def test_the_gap_of_a_ring_is_its_closed_form(size: int) -> None:
    assert spectral_gap(Ring(), size) == pytest.approx(1 - (1 + 2 * cos(2 * pi / size)) / 3, abs=1e-9)


@pytest.mark.parametrize("size", range(3, 40))
def test_the_gap_of_a_torus_is_that_of_its_two_circles(size: int) -> None:
    """Eigenvalues are (1 + those of the rows' circle + those of the columns') / (1 + neighbours)."""
    (first, one), (second, other) = (_circle(length) for length in grid(size))
    values = [(1 + a + b) / (1 + one + other) for a in first for b in second]
    values.remove(1.0)
    assert spectral_gap(Torus(), size) == pytest.approx(1 - max(map(abs, values)), abs=1e-9)


def _circle(length: int) -> tuple[list[float], int]:
    """Eigenvalues of a circle's adjacency, and how many neighbours one has on it."""
    neighbours = min(length - 1, 2)
    return [neighbours * cos(2 * pi * k / length) for k in range(length)], neighbours


@pytest.mark.parametrize("size", [9, 12, 16, 25, 30])
def test_on_a_torus_of_more_than_two_rows_the_longer_side_decides(size: int) -> None:
    _, columns = grid(size)
    assert spectral_gap(Torus(), size) == pytest.approx(1 - (3 + 2 * cos(2 * pi / columns)) / 5, abs=1e-9)


@pytest.mark.parametrize("size", [2, 3, 5, 7, 13])
def test_a_torus_of_a_prime_number_of_agents_is_a_ring(size: int) -> None:
    assert torch.equal(matrix(Torus(), size), matrix(Ring(), size))


@pytest.mark.parametrize("size", range(2, 65))
def test_the_gap_of_the_exponential_graph_is_two_by_its_neighbours_and_itself(size: int) -> None:
    """Exactly so for even n, and larger for odd n: proposition 1 of arXiv 2110.13363."""
    gap, bound = spectral_gap(Exponential(), size), 2 / (1 + (size - 1).bit_length())
    assert gap == pytest.approx(bound, abs=1e-9) if size % 2 == 0 else gap > bound


@pytest.mark.parametrize("size", range(1, 20))
def test_on_the_complete_graph_one_mixing_is_the_mean(size: int) -> None:
    assert spectral_gap(Complete(), size) == pytest.approx(1)
    assert torch.equal(matrix(Complete(), size), torch.full((size, size), 1 / size, dtype=torch.float64))


@pytest.mark.parametrize("size", [2, 4, 8, 16, 64])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_one_peer_after_another_is_exactly_the_mean_of_a_power_of_two(size: int, start: int) -> None:
    clocks = range(start, start + int(log2(size)))
    made = reduce(lambda out, clock: matrix(OnePeer(), size, clock) @ out, clocks, torch.eye(size, dtype=torch.float64))
    assert torch.equal(made, torch.full((size, size), 1 / size, dtype=torch.float64))
    assert spectral_gap(OnePeer(), size) == pytest.approx(1)


@pytest.mark.parametrize("size", [3, 5, 6, 7, 12])
def test_of_other_numbers_one_peer_after_another_comes_near_the_mean_only(size: int) -> None:
    assert 0.5 < spectral_gap(OnePeer(), size) < 1 - 1e-3


@pytest.mark.parametrize("size", range(2, 12))
def test_random_pairs_leave_of_the_squared_distance_what_the_closed_form_says(size: int) -> None:
    left = (size - 2) / (2 * size - 2) if size % 2 == 0 else 0.5
    assert spectral_gap(Matching(), size) == pytest.approx(1 - left)


@pytest.mark.parametrize("graph", [Matching(), RandomPush()], ids=str)
@pytest.mark.parametrize("size", [2, 5, 8])
def test_the_expected_matrix_is_the_mean_of_those_that_are_drawn(graph: Peers, size: int) -> None:
    drawn = torch.stack([matrix(graph, size, clock, seed=1) for clock in range(2000)]).mean(0)
    assert (drawn - graph.cycle(size)).abs().max() < 0.03


def test_pairs_follow_from_seed_and_clock_and_from_nothing_else() -> None:
    drawn = [matrix(Matching(), 8, clock, seed) for clock in range(3) for seed in range(3)]
    assert len({tuple(weights.flatten().tolist()) for weights in drawn}) == 9
    assert torch.equal(matrix(Matching(), 8, 1, 2), drawn[5])


def test_of_an_odd_number_one_has_no_partner() -> None:
    for clock in range(20):
        assert (matrix(Matching(), 7, clock).diagonal() == 1).sum() == 1


def test_edges_by_hand_weigh_by_the_busier_end() -> None:
    """0 - 1 - 2 and 1 - 3: agent 1 has three neighbours."""
    third = Given("0-1,1 - 2, 3-1")
    assert matrix(third, 4)[1].tolist() == [0.25] * 4
    assert matrix(third, 4)[0].tolist() == [0.75, 0.25, 0, 0]


def test_a_matrix_by_hand_is_taken_as_it_is_and_knows_whether_it_is_balanced() -> None:
    uneven = Weights("1/2 2/3; 0.5 1/3")
    assert matrix(uneven, 2).tolist() == [[0.5, 2 / 3], [0.5, 1 / 3]]
    assert not uneven.balanced
    assert Weights("1/2 1/2; 1/2 1/2").balanced


@pytest.mark.parametrize("text", BY_HAND)
def test_while_there_are_others_a_graph_by_hand_is_a_ring(text: str) -> None:
    assert torch.equal(matrix(parse(text, "graph"), 6), matrix(Ring(), 6))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("given('0-1, 2-3')", "edges leave 2 agents .* given\\('0-1, 2-3, 0-2'\\) would do"),
        ("given('1-2')", "given\\('1-2, 0-1'\\) would do"),
        ("given('0-0')", "edges has '0-0'.* '0-1'"),
        ("given('')", "edges has ''"),
        ("given('0-1-2')", "edges has '0-1-2'"),
        ("weights('1/2 1/2; 1/2 1/3')", "rows give column 1 a sum of 5/6"),
        ("weights('1 0; 0 1')", "rows do not connect: agent 1 is not reached from agent 0"),
        ("weights('1 1/2; 0 1/2')", "rows do not connect"),
        ("weights('1/2 0; 1/2 1')", "rows do not connect: agent 1 has no way to agent 0"),
        ("weights('0 1; 1 0')", "rows let agent 0 keep nothing"),
        ("weights('1/2 1/2')", "rows are 1, of \\[2\\] weights"),
        ("weights('2 -1; -1 2')", "rows hold '-1'; a weight is like"),
        ("weights('1/0')", "rows hold '1/0'"),
    ],
)
def test_what_is_no_graph_to_mix_along_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(text, "graph")


@pytest.mark.parametrize("text", [*BY_HAND[:1], "one_peer", "ring"])
def test_a_graph_has_a_text(text: str) -> None:
    assert str(parse(text, "graph")) == text
    assert parse(str(parse(text, "graph")), "graph") == parse(text, "graph")


def test_a_ring_is_a_graph_where_one_is_awaited_and_else_a_topology() -> None:
    assert parse("gossip_sgd(ring, 2)", "strategy") == parse("gossip_sgd(graph=ring, every=2)", "strategy")
    assert str(parse("allreduce(topology=ring)", "strategy")) == "allreduce(topology=ring)"
    assert type(parse("ring", "topology")) is not type(parse("ring", "graph"))
