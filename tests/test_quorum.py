"""A quorum moves the centre, who is late is in the next round's mean, and no drift is lost or counted twice.

Agents here do nothing but visit: agent i's drift before its k-th visit is given, and so is when it comes. What each
ends with is its own x after ``settle``; the mean of these is what all would then agree on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import stretto.strategies  # noqa: F401  registers their names
from stretto.core import Cell, Codec, Like, Link, mixed
from stretto.errors import PeerLost, UsageError
from stretto.exchanges import Lane, Quorum, agree
from stretto.outers import Nesterov
from stretto.sim import SimNetwork, World
from stretto.text import parse

IDENTITY: Codec = parse("identity", "codec")
PLAIN = {"outer_lr": 1.0, "outer_momentum": 0.0}


class Over(Exception):
    """An agent is done, and so is its server."""


@dataclass
class Agent:
    """``xs`` are what its visits gave it, ``times`` when, and ``x`` is what it ends with."""

    cell: Cell
    x: Tensor
    xs: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Visits:
    """Agent i trains ``paces(i, k)`` seconds for its k-th drift, ``drifts[i, k]``."""

    mixing: Quorum
    drifts: Tensor
    paces: Callable[[int, int], float] = lambda rank, visit: 1.0
    codec: Codec = IDENTITY

    async def live(self, link: Link) -> Agent:
        drifts = self.drifts[link.rank]
        like = Like(tuple(drifts[0].shape), drifts.dtype, own=mixed(7, link.rank))
        agent = Agent(Cell(like), torch.zeros_like(drifts[0]))
        with suppress(Over):
            await link.together(self._serve(link, agent), self._work(link, agent, drifts))
        return agent

    async def _serve(self, link: Link, agent: Agent) -> None:
        if link.size > 1:
            await self.mixing.serve(link, self.codec, agent.cell)

    async def _work(self, link: Link, agent: Agent, drifts: Tensor) -> None:
        for visit, drift in enumerate(drifts):
            await link.sleep(self.paces(link.rank, visit))
            agent.x = await self.mixing.mix(link, agent.x + drift, self.codec, agent.cell, visit)
            agent.xs.append(agent.x.clone())
            agent.times.append(link.now())
        owed = self.mixing.settle(agent.cell)
        agent.x = agent.x if owed is None else agent.x + owed
        await agree(Lane(link, 1), "who is done", "")
        raise Over

    def run(self, network: SimNetwork = SimNetwork(delay=1e-3)) -> list[Agent]:  # noqa: B008
        return World(len(self.drifts), network, seed=1).run(self.live)


def centre(agents: Sequence[Agent]) -> Tensor:
    return torch.cat([a.cell.state["centre"] for a in agents])


def some(size: int, visits: int, features: int = 6) -> Tensor:
    return torch.randn(size, visits, features, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("paces", [lambda rank, visit: 1.0, lambda rank, visit: 1.0 + rank], ids=["even", "uneven"])
def test_with_a_quorum_of_all_it_is_diloco(size: int, paces: Callable[[int, int], float]) -> None:
    drifts = some(size, visits=6)
    outer, state, at = Nesterov(0.7, 0.9), None, torch.zeros(6, dtype=torch.float64)
    agents = Visits(Quorum(quorum=1.0, grace=0.0), drifts, paces).run()
    for visit in range(6):
        step, state = outer.update(drifts[:, visit].mean(0), state)
        at = at + step
        assert all((a.xs[visit] - at).abs().max() < 1e-12 for a in agents)


def test_rounds_do_not_wait_for_a_straggler() -> None:
    agents = Visits(Quorum(0.5, 0.1), some(4, 6), lambda rank, visit: 5.0 if rank == 3 else 1.0).run()
    assert all(a.times[-1] < 6 * 1.1 + 0.5 for a in agents[:3])
    assert agents[3].times[-1] < 30.5


@pytest.mark.parametrize(("behind", "closes", "then"), [(0.05, 2.05, 1 / 4), (0.5, 2.1, 0.0)])
def test_a_round_closes_when_all_have_come_or_the_grace_is_over(behind: float, closes: float, then: float) -> None:
    drifts = torch.zeros(4, 3, 4, dtype=torch.float64)
    drifts[3, 1] = 1.0
    paces = lambda rank, visit: 1.0 + behind * (rank == 3 and visit == 1)  # noqa: E731
    for agent in Visits(Quorum(0.75, 0.1, **PLAIN), drifts, paces).run()[:3]:
        assert agent.times[1] == pytest.approx(closes, abs=0.02)
        assert agent.xs[1].tolist() == [then] * 4
        assert agent.xs[2].tolist() == [1 / 4] * 4


def test_a_late_drift_is_in_the_next_rounds_mean() -> None:
    drifts = torch.zeros(4, 3, 4, dtype=torch.float64)
    drifts[3, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    agents = Visits(Quorum(0.75, 0.1, **PLAIN), drifts, lambda rank, visit: 1.5 if rank == 3 else 1.0).run()
    for agent in agents[:3]:
        assert not agent.xs[0].any()
        assert torch.equal(agent.xs[1], drifts[3, 0] / 4)
        assert torch.equal(agent.xs[2], drifts[3, 0] / 4)
    assert not agents[3].xs[0].any()


@pytest.mark.slow
def test_in_300_schedules_each_drift_is_in_one_mean_or_in_one_agents_own() -> None:
    """Each drift is a 1 of its own place in each slice. A mean of m then adds 1/m at m places: a drift that was lost
    leaves a zero, and one that came twice no such number, or not m of them."""
    torch.set_num_threads(1)
    merged = kept = late = 0
    for seed in range(300):
        draw = random.Random(seed)
        size, visits, quorum = 3 + seed % 4, draw.randint(1, 6), draw.choice([0.34, 0.5, 0.75])
        least = math.ceil(quorum * size - 1e-9)
        drifts = torch.eye(size * visits, dtype=torch.float64).reshape(size, visits, -1).repeat(1, 1, size)
        network = SimNetwork(delay=10 ** draw.uniform(-3, 0), jitter=10 ** draw.uniform(-3, 0.5), rate=1e6)
        mixing = Quorum(quorum, draw.choice([0.0, 0.1, 0.5]), **PLAIN)
        waits = [[draw.expovariate(1.0) for _ in range(visits)] for _ in range(size)]
        agents = Visits(mixing, drifts, lambda rank, visit, w=waits: w[rank][visit]).run(network)
        assert all(a.cell.state["closed"] == visits and not a.cell.state["open"] for a in agents), f"seed {seed}"
        left = torch.stack([a.x - centre(agents) for a in agents]).sum(0)
        for inside, own in zip(centre(agents).chunk(size), left.chunk(size), strict=True):
            means = (1 / inside[inside > 0]).round()
            assert (inside[inside > 0] - 1 / means).abs().max() < 1e-9, f"seed {seed}"
            assert means.min() >= least, f"seed {seed}"
            assert all(number % m == 0 for m, number in zip(*means.unique(return_counts=True), strict=True))
            assert (own - (inside == 0).double()).abs().max() < 1e-9, f"seed {seed}"
            merged, kept, late = merged + len(means), kept + int((inside == 0).sum()), late + int((means > size).sum())
    assert min(merged, kept, late) > 100


@pytest.mark.parametrize("codec", ["int8", "int4", "ternary", "topk(0.5)", "feedback(topk(0.2))", "bf16"])
def test_with_a_lossy_codec_owners_know_what_each_was_given(codec: str) -> None:
    drifts = some(4, 8, 40)
    draw = random.Random(codec)
    agents = Visits(Quorum(), drifts, lambda rank, visit: draw.expovariate(1.0), parse(codec, "codec")).run()
    for owner in agents:
        mine = slice(*owner.cell.state["mine"])
        for rank, given in owner.cell.state["given"].items():
            assert torch.equal(agents[rank].cell.state["base"][mine], given)


@pytest.mark.parametrize("codec", ["int4", "topk(0.5)", "feedback(topk(0.5))"])
def test_what_a_lossy_codec_loses_of_an_answer_is_in_the_next(codec: str) -> None:
    drifts = torch.cat([some(3, 1, 12), torch.zeros(3, 40, 12, dtype=torch.float64)], 1)
    agents = Visits(Quorum(1.0, 0.0, **PLAIN), drifts, codec=parse(codec, "codec")).run()
    assert centre(agents).abs().max() > 0.1
    assert all((a.x - centre(agents)).abs().max() < 1e-3 for a in agents)


def test_fewer_elements_than_agents_do() -> None:
    agents = Visits(Quorum(1.0, 0.0, **PLAIN), torch.ones(3, 2, 1, dtype=torch.float64)).run()
    assert [a.x.item() for a in agents] == [2.0] * 3


def test_whoever_needs_a_dead_agent_is_told_and_nobody_hangs() -> None:
    for seed in range(20):
        draw = random.Random(seed)
        visits = Visits(Quorum(), some(2 + seed % 4, 8), lambda rank, visit, d=draw: d.expovariate(1.0))
        world = World(len(visits.drifts), SimNetwork(delay=0.05), seed=seed)
        world.kill(0, at=1.0 + seed / 8)
        dead, *ends = world.run(visits.live, keep_errors=True)
        assert dead is None
        assert all(isinstance(end, PeerLost) and end.peer == 0 for end in ends), f"seed {seed}: {ends}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("decoupled_diloco(0)", "from 1 on"),
        ("decoupled_diloco(quorum=0)", "quorum=0 is a share .* 0.5 would do"),
        ("decoupled_diloco(quorum=2)", "quorum=2 is a share .* 0.5 would do"),
        ("decoupled_diloco(grace=-1)", "grace=-1 is a share .* 0.1 would do"),
        ("decoupled_diloco(outer_lr=0)", "outer lr must be above 0; 0.7 is usual"),
        ("decoupled_diloco(outer_momentum=1.0)", "outer momentum must be from 0 to below 1; 0.9 is usual"),
        ("decoupled_diloco(8, settle=4)", "settle must be at least every.* 16 would do"),
        ("decoupled_diloco(codec=lowrank)", "use identity"),
    ],
)
def test_what_cannot_be_is_refused_with_the_argument_named(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(text, "strategy")
