"""Mixing without waiting: nothing is lost or applied twice in any order of events, and training ends below a bound.

The trainings. Agent i descends f_i(x) = |x - b_i|²/2 by steps lr (x - b_i + noise) and mixes beside; the loss is that
of the mean of all, |u|²/2 with u = mean(x) - mean(b). As a mixing keeps the sum, and agents are equally quick, a step
of a random agent moves u by -lr/n u on average (Lian et al. 2018, arXiv 1710.06952, section 4, here with one curvature,
so that staleness adds no bias), and E|u|² by (lr/n)² (|u|² + S + noise²) more, with S the mean of |x_i - b_i - u|². So
after T steps of each of n agents

    E loss <= (1 - lr/n)^(2nT) |u_0|²/2 + lr/(4n) (S + noise²) / (1 - lr/2n)

S is at most 4 mean|b_i - mean(b)|² while agents are no further from their mean than their own minima are from theirs,
which is where they would end if they never mixed. The elastic centre has no gradient of its own: on average k steps of
all and a visit are [[(1 - alpha) g, alpha], [n alpha g, 1 - n alpha]] with g = (1 - lr)^k, whose largest eigenvalue
takes the place of (1 - lr/n)^(nk).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import worlds
from torch import Tensor

from stretto import strategies
from stretto.core import Cell, Codec, Like, Link, mixed
from stretto.errors import PeerLost, UsageError
from stretto.exchanges import Elastic, Lane, NoLoCo, Pairs, agree
from stretto.graphs.matching import Matching
from stretto.sim import SimNetwork, World
from stretto.text import parse

SCHEDULES = 1000
STEPS, LR, NOISE, FEATURES = 16, 0.2, 0.3, 6
IDENTITY: Codec = parse("identity", "codec")


class Over(Exception):
    """An agent is done, and so is its server."""


@dataclass
class Agent:
    """What one agent of a training ended with. ``moved`` is the sum of the steps of its own trainer."""

    x: Tensor
    moved: Tensor
    cell: Cell


@dataclass(frozen=True)
class Training:
    """``size`` agents in one random order of events. Every other seed's trainers go on while they mix.

    With ``lr`` 0 they begin at their minima, and nothing but mixing moves them. A step takes ``pace`` seconds, about.
    """

    mixing: Any
    seed: int
    size: int
    codec: Codec = IDENTITY
    lr: float = LR
    steps: int = STEPS
    every: int = 1
    pace: float = 1.0

    @property
    def minima(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.size, FEATURES, generator=generator, dtype=torch.float64)

    @property
    def begin(self) -> Tensor:
        return torch.zeros_like(self.minima) if self.lr else self.minima

    def world(self) -> World:
        draw = random.Random(self.seed)
        network = SimNetwork(delay=10 ** draw.uniform(-3, 0), jitter=10 ** draw.uniform(-3, 0.5), rate=1e6)
        return World(self.size, network, seed=self.seed)

    def run(self) -> list[Agent]:
        return self.world().run(self.live)

    async def live(self, link: Link) -> Agent:
        like = Like((FEATURES,), torch.float64, seed=self.seed, own=mixed(self.seed, link.rank))
        agent = Agent(self.begin[link.rank].clone(), torch.zeros(FEATURES, dtype=torch.float64), Cell(like))
        with suppress(Over):
            await link.together(self.mixing.serve(link, self.codec, agent.cell), self._work(link, agent))
        return agent

    async def _work(self, link: Link, agent: Agent) -> None:
        draw = random.Random(f"{self.seed} {link.rank}")
        if self.seed % 2:
            await link.together(self._train(link, agent, draw, mixes=False), self._mix_on(link, agent))
        else:
            await self._train(link, agent, draw, mixes=True)
        if isinstance(self.mixing, Pairs):
            owed = self.mixing.settle(agent.cell)
            agent.x += 0 if owed is None else owed
        await agree(Lane(link, 1), "who is done", "")
        raise Over

    async def _train(self, link: Link, agent: Agent, draw: random.Random, *, mixes: bool) -> None:
        generator = torch.Generator().manual_seed(mixed(self.seed, link.rank))
        noise = torch.randn(self.steps, FEATURES, generator=generator, dtype=torch.float64) * NOISE
        target = self.minima[link.rank]
        for step in range(self.steps):
            await link.sleep(self.pace * draw.expovariate(1.0))
            move = (agent.x - target + noise[step]) * -self.lr
            agent.x += move
            agent.moved += move
            if mixes and (step + 1) % self.every == 0:
                await self._mix(link, agent, step)

    async def _mix_on(self, link: Link, agent: Agent) -> None:
        for step in range(0, self.steps, self.every):
            await self._mix(link, agent, step)
            await link.sleep(self.pace * self.every)

    async def _mix(self, link: Link, agent: Agent, clock: int) -> None:
        given = agent.x.clone()
        agent.x += await self.mixing.mix(link, given, self.codec, agent.cell, clock) - given


def total(agents: Sequence[Agent]) -> Tensor:
    """Of the weights of all; a centre counts as one more agent's."""
    whole = torch.stack([a.x for a in agents]).sum(0)
    if "centre" in agents[0].cell.state:
        whole += torch.cat([a.cell.state["centre"] for a in agents])
    return whole


def unanswered(agents: Sequence[Agent]) -> list[tuple[int, int]]:
    """Who asked whom and was not answered as often."""
    return [
        (i, j)
        for i, a in enumerate(agents)
        for j, times in a.cell.state["asked"].items()
        if agents[j].cell.state["answered"].get(i) != times
    ]


def loss(training: Training, agents: Sequence[Agent]) -> float:
    mean = torch.stack([a.x for a in agents]).mean(0)
    return float((mean - training.minima.mean(0)).square().sum()) / 2


def bound(training: Training) -> float:
    """The bound of the module's docstring on the mean of :func:`loss`."""
    n, minima = training.size, training.minima
    centre = minima.mean(0)
    spread = 4 * float((minima - centre).square().sum(1).mean())
    left = (1 - LR / n) ** (n * STEPS)
    if isinstance(training.mixing, Elastic):
        alpha, g = training.mixing.alpha, (1 - LR) ** training.every
        means = torch.tensor([[(1 - alpha) * g, alpha], [n * alpha * g, 1 - n * alpha]])
        left = float(torch.linalg.eigvals(means).abs().max()) ** (STEPS // training.every)
    wandering = LR / (4 * n) * (spread + FEATURES * NOISE**2) / (1 - LR / (2 * n))
    return left**2 * float(centre.square().sum()) / 2 + wandering


def moved(training: Training, agents: Sequence[Agent]) -> float:
    """By how much the sum is not where the trainers took it."""
    return float((total(agents) - training.begin.sum(0) - torch.stack([a.moved for a in agents]).sum(0)).abs().max())


def spread(xs: Tensor) -> float:
    return float((xs - xs.mean(0)).square().sum())


every_mixing = pytest.mark.parametrize("mixing", [Pairs(), Elastic(0.15)], ids=["pairs", "elastic"])


@pytest.mark.slow
@pytest.mark.parametrize(("mixing", "every"), [(Pairs(), 1), (Elastic(0.15), 4)], ids=["pairs", "elastic"])
def test_a_thousand_schedules_end_below_the_bound_and_nothing_is_lost_or_applied_twice(mixing: Any, every: int) -> None:
    torch.set_num_threads(1)
    ratios, asked = [], 0
    for seed in range(SCHEDULES):
        training = Training(mixing, seed, size=2 + seed % 5, every=every)
        agents = training.run()
        assert moved(training, agents) < 1e-9, f"seed {seed}"
        assert not unanswered(agents), f"seed {seed}"
        asked += sum(sum(a.cell.state["asked"].values()) for a in agents)
        ratios.append(loss(training, agents) / bound(training))
    assert asked >= 2 * SCHEDULES * STEPS // every
    assert sum(ratios) / len(ratios) < 1
    assert max(ratios) < 10


@every_mixing
@pytest.mark.parametrize("codec", ["int8", "int4", "ternary", "topk(0.5)", "feedback(topk(0.2))", "bf16"])
def test_the_sum_is_kept_whatever_a_codec_loses(mixing: Any, codec: str) -> None:
    for seed in range(10):
        training = Training(mixing, seed, size=2 + seed % 5, codec=parse(codec, "codec"))
        agents = training.run()
        assert moved(training, agents) < 1e-9, f"seed {seed}"
        assert not unanswered(agents)


@every_mixing
def test_without_gradients_agents_come_together(mixing: Any) -> None:
    for seed in range(20):
        training = Training(mixing, seed, size=2 + seed % 5, lr=0.0, steps=100)
        agents = training.run()
        assert moved(training, agents) < 1e-9, f"seed {seed}"
        assert spread(torch.stack([a.x for a in agents])) < 1e-3 * spread(training.begin), f"seed {seed}"


@every_mixing
def test_whoever_needs_a_dead_agent_is_told_and_nobody_hangs(mixing: Any) -> None:
    for seed in range(40):
        training = Training(mixing, seed, size=2 + seed % 5)
        world = training.world()
        world.kill(0, at=1.0 + seed / 4)
        dead, *ends = world.run(training.live, keep_errors=True)
        assert dead is None
        assert all(isinstance(end, PeerLost) and end.peer == 0 for end in ends), f"seed {seed}: {ends}"


def test_two_whose_questions_cross_average_once() -> None:
    x = torch.tensor([[1.0, 5.0], [3.0, 9.0]], dtype=torch.float64)

    async def live(link: Link) -> Tensor:
        cell = Cell(Like((2,), torch.float64, own=link.rank))
        ends: list[Tensor] = []

        async def work() -> None:
            ends.append(await Pairs().mix(link, x[link.rank], IDENTITY, cell, clock=0))
            await agree(Lane(link, 1), "who is done", "")
            owed = Pairs().settle(cell)
            ends.append(ends[0] if owed is None else ends[0] + owed)
            raise Over

        with pytest.raises(Over):
            await link.together(Pairs().serve(link, IDENTITY, cell), work())
        return ends[-1]

    assert torch.stack(World(2).run(live)).tolist() == [[2.0, 7.0], [2.0, 7.0]]
    assert x.tolist() == [[1.0, 5.0], [3.0, 9.0]]


@pytest.mark.network
@every_mixing
@pytest.mark.parametrize("link", ["tcp", "unix"])
def test_over_real_links_the_sum_is_kept_too(mixing: Any, link: str) -> None:
    for seed in range(2):
        training = Training(mixing, seed, size=3, pace=1e-3)
        agents = worlds.run(link, 3, training.live)
        assert moved(training, agents) < 1e-9
        assert not unanswered(agents)


# NoLoCo


def meet(mixing: NoLoCo, starts: Tensor, rounds: int, progress: Tensor, codec: Codec = IDENTITY) -> Tensor:
    """All agents meet ``rounds`` times, and make the same ``progress`` [n, d] before each: their weights at the end."""

    async def live(link: Link) -> Tensor:
        x = starts[link.rank]
        cell = Cell(Like(tuple(x.shape), x.dtype, seed=3, own=link.rank))
        for clock in range(rounds):
            x = await mixing.mix(link, x + progress[link.rank], codec, cell, clock)
        return x

    return torch.stack(World(len(starts)).run(live))


def test_noloco_takes_the_steps_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(5)
    starts, progress = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    momentum, lr, gamma = 0.4, 0.6, 0.8
    phi, delta = torch.zeros_like(starts), torch.zeros_like(starts)
    theta = starts
    for clock in range(6):
        theta = theta + progress
        groups = [[rank, *Matching().tells(rank, 5, clock, 3)] for rank in range(5)]
        ahead = torch.stack([(theta - phi)[group].mean(0) for group in groups])
        apart = torch.stack([phi[rank] - phi[group].mean(0) for rank, group in enumerate(groups)])
        delta = momentum * delta + lr * ahead - gamma * apart
        phi = phi + delta
        theta = phi
    assert (meet(NoLoCo(momentum, lr, gamma), starts, 6, progress) - phi).abs().max() < 1e-12


def test_noloco_without_an_outer_optimizer_is_the_mean_of_two() -> None:
    starts = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    progress = torch.tensor([[1.0, 2.0, 3.0], [0.0, -2.0, 1.0]], dtype=torch.float64)
    ends = meet(NoLoCo(0.0, 1.0, 1.0), starts, 3, progress)
    assert (ends - (starts + 3 * progress).mean(0)).abs().max() < 1e-12


def noloco_spread(gamma: float, rounds: int) -> float:
    """What is left, on average, of the squared distance between 16 agents without gradients."""
    starts = torch.randn(16, 400, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return spread(meet(NoLoCo(0.5, 0.7, gamma), starts, rounds, torch.zeros_like(starts)))


def test_noloco_draws_agents_together_as_its_eigenvalue_says_and_apart_beyond_its_limit() -> None:
    pace = (noloco_spread(0.7, 44) / noloco_spread(0.7, 4)) ** (1 / 40)
    assert pace == pytest.approx(0.70, rel=0.1)
    with pytest.raises(UsageError, match=r"gamma=1.6 .* 0.75 would do"):
        NoLoCo(0.5, 0.7, 1.6)


# Strategies


def test_easgd_is_equations_5_and_6() -> None:
    strategy = strategies.easgd(alpha=0.2, beta=0.8)
    xs, centre = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    centre = centre[0]
    step, _ = strategy.outer.update((centre - xs).mean(0), strategy.outer.init(centre))
    after = centre - step
    own = torch.stack([strategy.landing.land(x, x, centre, after) for x in xs])
    assert (after - (0.2 * centre + 0.8 * xs.mean(0))).abs().max() < 1e-12
    assert (own - (xs - 0.2 * (xs - centre))).abs().max() < 1e-12


def test_with_as_many_agents_as_beta_is_alphas_the_elastic_keeps_the_sum() -> None:
    strategy = strategies.easgd(alpha=0.2, beta=0.8)
    xs = torch.randn(4, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    centre = torch.zeros(3, dtype=torch.float64)
    step, _ = strategy.outer.update((centre - xs).mean(0), strategy.outer.init(centre))
    own = torch.stack([strategy.landing.land(x, x, centre, centre - step) for x in xs])
    assert (own.sum(0) + centre - step - xs.sum(0)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("async_gossip(0)", "from 1 on"),
        ("async_gossip(codec=lowrank)", "use identity"),
        ("easgd(alpha=0.0)", "alpha must be"),
        ("easgd(beta=1.5)", "beta must be"),
        ("async_easgd(alpha=1.0)", "alpha=1.0 must be"),
        ("async_easgd(codec=randomk(0.1))", "use identity"),
        ("noloco(outer_lr=4)", "outer_lr=4 must be"),
        ("noloco(outer_momentum=1.0)", "outer_momentum=1.0 must be"),
        ("noloco(outer_momentum=0.9)", "gamma=0.7 must be"),
    ],
)
def test_what_cannot_be_is_refused_with_the_argument_named(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(text, "strategy")


def test_a_codec_that_holds_one_that_is_read_as_a_mean_is_refused_when_it_is_used() -> None:
    cell = Cell(Like((4,), torch.float32))
    with pytest.raises(UsageError, match="lowrank"):
        World(2).run(lambda link: Pairs().mix(link, torch.zeros(4), parse("lowrank", "codec"), cell, 0))
