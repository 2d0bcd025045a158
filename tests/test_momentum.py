"""Momentum: of all agents' outer steps, also where drifts come one by one; and of what each agent has not sent yet."""

from __future__ import annotations

import heapq
import math
from functools import cache
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stretto import workloads
from stretto.checkpoint import tree
from stretto.core import Outer, Strategy
from stretto.errors import UsageError
from stretto.outers import DelayedNesterov, Nesterov
from stretto.server import Piece, Push, Rule, Server, Shard, Slot
from stretto.strategies import allreduce, demo, diloco, sparse_loco
from stretto.text import parse


def drifts(count: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(20, generator=draw) for _ in range(count)]


def steps(outer: Outer, given: list[Tensor], remembered: Any = None, part: float = 1.0) -> tuple[list[Tensor], Any]:
    found = []
    for drift in given:
        step, remembered = outer.update(drift, remembered, part)
        found.append(step)
    return found, remembered


# The outer step


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_nesterov_delayed_by_one_is_nesterov(momentum: float) -> None:
    delayed, _ = steps(DelayedNesterov(0.7, momentum), drifts(5))
    plain, _ = steps(Nesterov(0.7, momentum), drifts(5))
    assert torch.equal(torch.stack(delayed), torch.stack(plain))


@pytest.mark.parametrize("agents", [1, 2, 3, 4, 6, 12])
def test_delayed_steps_of_all_agents_are_one_with_their_mean(agents: int) -> None:
    given = drifts(12)
    delayed, _ = steps(DelayedNesterov(0.7, 0.9), given, part=1 / agents)
    plain, _ = steps(Nesterov(0.7, 0.9), list(torch.stack(given).view(-1, agents, 20).mean(1)))
    torch.testing.assert_close(torch.stack(delayed).view(-1, agents, 20).sum(1), torch.stack(plain))


def test_rounds_end_as_well_when_the_number_of_agents_changes() -> None:
    """Two of three agents, and then five in place of the third."""
    outer, given = DelayedNesterov(1.0, 0.5), drifts(7)
    first, kept = steps(outer, given[:2], part=1 / 3)
    then, _ = steps(outer, given[2:], kept, part=1 / 15)
    mean = (given[0] + given[1]) / 3 + sum(given[2:], torch.zeros(20)) / 15
    torch.testing.assert_close(sum(first + then, torch.zeros(20)), mean * 1.5)


@pytest.mark.parametrize("outer", [Nesterov(), DelayedNesterov()], ids=str)
@pytest.mark.parametrize("before", range(5))
def test_what_is_remembered_can_be_saved_and_is_never_written(outer: Outer, before: int) -> None:
    first, then = drifts(before), drifts(9)[before:]
    _, kept = steps(outer, first, outer.init(torch.zeros(20)), 1 / 3)
    saved = tree.flatten(kept)
    whole, _ = steps(outer, then, kept, 1 / 3)
    again, _ = steps(outer, then, tree.restore(saved.facts, saved.tensors), 1 / 3)
    assert torch.equal(torch.stack(whole), torch.stack(again))
    assert torch.equal(torch.stack(whole), torch.stack(steps(outer, then, kept, 1 / 3)[0]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nesterov(0)", "lr must be above 0; 0.7 is usual"),
        ("nesterov(1e999)", "lr must be above 0; 0.7 is usual"),
        ("nesterov(0.7, 1.0)", "momentum must be from 0 to below 1; 0.9 is usual"),
        ("delayed_nesterov(-1)", "lr must be above 0; 0.7 is usual"),
        ("delayed_nesterov(momentum=-0.1)", "momentum must be from 0 to below 1; 0.9 is usual"),
    ],
)
def test_an_outer_step_that_cannot_be_is_refused_and_a_usual_one_named(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(text, "outer")


# Asynchronous local SGD (arXiv 2401.09135)

AGENTS, ROUNDS, LOCAL, WIDTH = 4, 30, 10, 32
PACES = (1.0, 1.3, 1.7, 2.9)
"""Seconds that each agent takes for its local steps."""
RATES: Final = (0.05, 0.1, 0.2, 0.28, 0.4, 0.7, 1.0)
SHAPES = ((WIDTH, 64), (WIDTH,), (10, WIDTH), (10,))


@cache
def digits() -> tuple[Tensor, Tensor]:
    x, y = workloads.get("digits").load(None).train
    return x.flatten(1), y


def loss(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    pieces = weights.split([math.prod(shape) for shape in SHAPES])
    a, b, c, d = (piece.view(shape) for piece, shape in zip(pieces, SHAPES, strict=True))
    return functional.cross_entropy(functional.linear(torch.tanh(functional.linear(x, a, b)), c, d), y)


class Worker:
    """An agent with a quarter of the digits: some of each, or (``apart``) only some of the classes."""

    def __init__(self, rank: int, *, apart: bool) -> None:
        x, y = digits()
        mine = y.argsort(stable=True).chunk(AGENTS)[rank] if apart else torch.arange(rank, len(y), AGENTS)
        self.x, self.y, self.draw = x[mine], y[mine], torch.Generator().manual_seed(rank)

    def drift(self, taken: Tensor) -> Tensor:
        """What it moves away by in its local steps from the weights that it took."""
        own = taken.clone()
        for _ in range(LOCAL):
            i = torch.randint(len(self.y), (32,), generator=self.draw)
            (gradient,) = torch.autograd.grad(loss(own.requires_grad_(), self.x[i], self.y[i]), own)
            own = own.detach() - 0.1 * gradient
        return taken - own


def begin() -> Tensor:
    return 0.1 * torch.randn(sum(map(math.prod, SHAPES)), generator=torch.Generator().manual_seed(0))


def synchronous(outer: Outer, workers: list[Worker]) -> float:
    weights, remembered = begin(), None
    for _ in range(ROUNDS):
        step, remembered = outer.update(torch.stack([w.drift(weights) for w in workers]).mean(0), remembered)
        weights = weights - step
    return float(loss(weights, *digits()))


def asynchronous(outer: Outer, workers: list[Worker]) -> float:
    """As many drifts on a server's slot, each when its agent is done, on weights that others have moved meanwhile."""
    slot = Slot(0, 0, 0, len(begin()), "float32", (Piece(0, 0, len(begin())),))
    shard, window = Shard(slot, Server(), Rule.landing(outer), begin()), torch.ones(1, dtype=torch.float64)
    shard.enter(tuple(range(AGENTS)))
    clock = [(pace, rank, 1, 0, begin()) for rank, pace in enumerate(PACES)]
    for _ in range(ROUNDS * AGENTS):
        now, rank, number, have, taken = heapq.heappop(clock)
        shard.push(Push(rank, number, have, 1.0, window), workers[rank].drift(taken))
        heapq.heappush(clock, (now + PACES[rank], rank, number + 1, shard.version, shard.values.clone()))
    return float(loss(shard.values, *digits()))


@cache
def at_rates(way: str, *, apart: bool) -> dict[float, float]:
    """The loss in the end, by outer rate."""
    found = {}
    for rate in RATES:
        workers = [Worker(rank, apart=apart) for rank in range(AGENTS)]
        match way:
            case "synchronous":
                found[rate] = synchronous(Nesterov(rate, 0.9), workers)
            case "naive":
                found[rate] = asynchronous(Nesterov(rate, 0.9), workers)
            case _:
                found[rate] = asynchronous(DelayedNesterov(rate, 0.9), workers)
    return found


def best(way: str, *, apart: bool) -> float:
    return min(found for found in at_rates(way, apart=apart).values() if math.isfinite(found))


every_deal = pytest.mark.parametrize("apart", [False, True], ids=["alike", "apart"])


@every_deal
def test_asynchronous_local_sgd_with_naive_momentum_is_worse_than_synchronous(apart: bool) -> None:
    """Liu et al. 2024 (arXiv 2401.09135), on digits in place of mixtures of Gaussians.

    Four agents on one server's slot, the slowest at a third of the quickest's pace; as many local steps each way; the
    loss at the best of seven outer rates. Agents with digits alike: 0.045 synchronous, 0.142 naive. Each with its own:
    0.067 and 0.272.
    """
    assert best("naive", apart=apart) > 2 * best("synchronous", apart=apart)


@every_deal
def test_naive_momentum_diverges_at_the_rate_that_is_best_for_synchronous_steps(apart: bool) -> None:
    """Losses of 35 and 6, where a guess has 2.3."""
    rates = at_rates("synchronous", apart=apart)
    assert not at_rates("naive", apart=apart)[min(rates, key=rates.__getitem__)] < 2 * math.log(10)


@pytest.mark.parametrize(("apart", "times"), [(False, 1.5), (True, 2.5)], ids=["alike", "apart"])
def test_delayed_nesterov_repairs_it(apart: bool, times: float) -> None:
    """With digits alike 0.052, 1.15 times the synchronous loss; where each has its own 0.121, 1.8 times.

    The best rate is the synchronous one's.
    """
    synchronous, delayed = at_rates("synchronous", apart=apart), at_rates("delayed", apart=apart)
    assert best("delayed", apart=apart) < times * best("synchronous", apart=apart)
    assert best("delayed", apart=apart) < best("naive", apart=apart) / 1.5
    assert min(delayed, key=delayed.__getitem__) == min(synchronous, key=synchronous.__getitem__)


# Momentum in what is held back


def test_demo_is_all_reduce_with_the_momentum_in_the_residual() -> None:
    assert demo() == allreduce(codec="feedback(dct_topk(0.0078125), decay=0.999)")
    assert demo(0.9, 0.1, block=32, topology="ring") == allreduce(
        codec="feedback(dct_topk(0.1, block=32), decay=0.9)", topology="ring"
    )


def test_sparse_loco_is_diloco_with_feedback_in_place_of_outer_momentum() -> None:
    assert sparse_loco() == diloco(32, 1.0, 0.0, codec="feedback(topk(0.03)+int2, decay=0.95)")
    assert sparse_loco(8, 0.1, 0.7, decay=0.9, values="int4", topology="tree") == diloco(
        8, 0.7, 0.0, codec="feedback(topk(0.1)+int4, decay=0.9)", topology="tree"
    )


@pytest.mark.parametrize("text", ["demo", "demo(0.99, topology=ring)", "sparse_loco", "sparse_loco(8, values=int4)"])
def test_the_text_of_what_is_made_of_others_is_its_own(text: str) -> None:
    made: Strategy = parse(text, "strategy")
    assert str(made) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("demo(1.5)", "decay must be above 0 and at most 1"),
        ("demo(fraction=0)", "fraction"),
        ("demo(block=0)", "block"),
        ("demo(topology=native)", "use topology=auto"),
        ("sparse_loco(0)", "every"),
        ("sparse_loco(outer_lr=0)", "the outer lr must be above 0; .* 1.0 without"),
        ("sparse_loco(decay=0)", "decay must be above 0 and at most 1"),
        ("sparse_loco(values=ternary)", "may lose more than there is"),
    ],
)
def test_what_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(text, "strategy")


def test_adamw_that_remembers_nothing_moves_by_the_sign_as_demo_wants_it() -> None:
    """And decays weights apart from that: the optimizer that demo's docstring names is the paper's."""
    weights = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weights], lr=0.01, betas=(0.0, 0.0), eps=1e-15, weight_decay=0.5)
    for gradient in (torch.tensor([3.0, -1e-6, 0.0, 2e-3, -40.0]), torch.tensor([0.0, 1e-6, -1.0, 7.0, 1e-9])):
        before = weights.detach().clone()
        weights.grad = gradient.double()
        optimizer.step()
        torch.testing.assert_close(weights.detach(), before * (1 - 0.01 * 0.5) - 0.01 * gradient.double().sign())
