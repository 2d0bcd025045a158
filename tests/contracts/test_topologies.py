"""What every topology promises, whatever the number of agents and wherever they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.parts import graphs
from stretto.core import Graph, Network, Topology
from stretto.errors import UsageError
from stretto.topologies import Auto, Butterfly, DoubleTree, Hierarchical, Native, Ring, Star, Tree

LAN = Network(delay=200e-6, rate=125e6)
every_graph = pytest.mark.parametrize("topology", graphs(), ids=str)
places = st.lists(st.integers(0, 4), min_size=1, max_size=17).map(tuple)


def check(graph: Graph, size: int) -> None:
    """Every tree spans all agents from one root, and parents and children agree about each other."""
    assert graph.size == size
    roles = [graph.roles(rank) for rank in range(size)]
    for tree in range(graph.trees):
        at = [roles[rank][tree] for rank in range(size)]
        assert all(role.tree == tree for role in at)
        (root,) = [rank for rank in range(size) if at[rank].parent == rank]
        heard = {(child, rank) for rank in range(size) for child in at[rank].children}
        assert heard == {(rank, at[rank].parent) for rank in range(size) if rank != root}
        assert sum(len(role.children) for role in at) == size - 1
        for rank, role in enumerate(at):
            assert role.depth == (0 if rank == root else at[role.parent].depth + 1)
            assert role.height == max((at[child].height + 1 for child in role.children), default=0)


@every_graph
@pytest.mark.parametrize("size", range(1, 18))
def test_every_tree_spans_all_agents_from_one_root(topology: Topology, size: int) -> None:
    check(topology.graph(tuple(range(size))), size)


@every_graph
@given(hosts=places)
def test_trees_are_valid_wherever_the_agents_are(topology: Topology, hosts: tuple[int, ...]) -> None:
    check(topology.graph(hosts), len(hosts))


@every_graph
def test_a_graph_is_made_once(topology: Topology) -> None:
    assert topology.graph((0, 0, 1)) is topology.graph((0, 0, 1))


@every_graph
def test_the_predicted_time_grows_with_bytes_and_with_slowness(topology: Topology) -> None:
    hosts = (0, 0, 1, 1, 2)
    times = [topology.seconds(hosts, nbytes, LAN) for nbytes in (0, 4096, 1 << 20, 1 << 26)]
    assert times == sorted(times) and times[0] > 0
    assert topology.seconds(hosts, 1 << 20, Network(LAN.delay, LAN.rate / 10)) > times[2]
    assert topology.seconds((0,), 1 << 20, LAN) == 0


@pytest.mark.parametrize("size", range(1, 40))
def test_in_a_double_tree_nobody_is_interior_twice(size: int) -> None:
    graph = DoubleTree().graph(tuple(range(size)))
    for rank in range(size):
        assert sum(bool(role.children) for role in graph.roles(rank)) <= 1


@pytest.mark.parametrize("topology", [Tree(), DoubleTree(), Butterfly()], ids=str)
def test_log_topologies_are_log_deep(topology: Topology) -> None:
    for size in (2, 7, 64, 1000):
        graph = topology.graph(tuple(range(size)))
        assert max(role.depth for rank in range(size) for role in graph.roles(rank)) <= size.bit_length()


def test_hierarchical_crosses_between_machines_as_rarely_as_a_topology_over_machines() -> None:
    hosts = (0, 0, 0, 1, 1, 1, 2, 2)
    graph = Hierarchical(Star(), Tree()).graph(hosts)
    crossings = [
        (role.tree, rank)
        for rank in range(len(hosts))
        for role in graph.roles(rank)
        if hosts[role.parent] != hosts[rank]
    ]
    assert len(crossings) == graph.trees * 2
    assert graph.trees == 2
    assert len({rank for _, rank in crossings}) == 4, "each share has leaders of its own"


def test_hierarchical_is_plain_where_there_is_no_hierarchy() -> None:
    plain = Hierarchical(Star(), Ring())
    for rank in range(4):
        assert plain.graph((0, 0, 0, 0)).roles(rank)[0] == Star().graph((0,) * 4).roles(rank)[0]
        assert plain.graph((0, 1, 2, 3)).roles(rank) == Ring().graph((0, 1, 2, 3)).roles(rank)


def test_auto_takes_few_hops_for_little_and_full_wires_for_much() -> None:
    hosts = tuple(range(16))
    little = Auto().choose(hosts, 4096, LAN)
    much = Auto().choose(hosts, 1 << 28, LAN)
    assert little in (Star(), Tree(), DoubleTree(), Butterfly())
    assert much in (Ring(), Butterfly(), DoubleTree())
    assert Auto().choose((0, 1, 2), 1 << 26, LAN) == Ring()


def test_auto_reduces_inside_machines_before_a_slow_network() -> None:
    chosen = Auto().choose((0, 0, 0, 0, 1, 1, 1, 1), 1 << 26, LAN)
    assert isinstance(chosen, Hierarchical)


def test_native_has_no_graph_and_says_what_has() -> None:
    with pytest.raises(UsageError, match="ring"):
        Native().graph((0, 1))
