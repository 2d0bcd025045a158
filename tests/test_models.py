"""Models as people have them: parts that not everybody uses, several at once, with buffers, begun otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import close, every_link, flat, mlp, numbers
from processes import agents
from torch import Tensor, nn

from stretto.agent import Agent

pytestmark = pytest.mark.network


# Parameters that not everybody uses


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.never = nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x: Tensor, second: bool) -> Tensor:
        y: Tensor = self.second(x) if second else self.first(x)
        return y


def unused(agent: Agent) -> list[Any]:
    net = agent.prepare(Branches())
    found = []
    for step in range(3):
        net(torch.ones(1, 2), second=agent.rank == 1 and step != 1).sum().backward()
        found.append([None if p.grad is None else p.grad.flatten().tolist() for p in net.parameters()])
        net.zero_grad()
    return found


@every_link
def test_a_parameter_that_some_use_gets_the_mean_and_one_that_nobody_uses_gets_none(link: str) -> None:
    one, half = [[1.0, 1.0], [1.0]], [[0.5, 0.5], [0.5]]
    nobody = [None, None]
    for life in agents(2, unused, link=link):
        assert life == [[*half, *half, *nobody], [*one, *nobody, *nobody], [*half, *half, *nobody]]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.inside, self.outside = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.outside.weight = self.inside.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outside(torch.tanh(self.inside(x)))
        return y


def tied(agent: Agent) -> list[float]:
    net = Tied()
    agent.prepare(net)
    net(numbers(4, 3, seed=agent.rank)).square().mean().backward()
    assert net.inside.weight is net.outside.weight and net.inside.weight.grad is not None
    grad: list[float] = net.inside.weight.grad.flatten().tolist()
    return grad


@every_link
def test_a_shared_parameter_is_exchanged_once_with_its_whole_gradient(link: str) -> None:
    net = Tied()
    net(torch.cat([numbers(4, 3, seed=r) for r in range(2)])).square().mean().backward()
    assert net.inside.weight.grad is not None
    for life in agents(2, tied, link=link):
        assert close(life, net.inside.weight.grad.flatten().tolist())


def frozen(agent: Agent) -> tuple[bool, list[float]]:
    net = mlp()
    first = net[0]
    assert isinstance(first, nn.Linear)
    first.requires_grad_(False)
    before = first.weight.clone()
    net, optimizer = agent.prepare(net, torch.optim.SGD(net.parameters(), 0.1))
    net(numbers(4, 6, seed=agent.rank)).square().mean().backward()
    optimizer.step()
    return first.weight.grad is None and torch.equal(first.weight, before), flat(net)


@every_link
def test_frozen_parameters_stay_and_are_not_exchanged(link: str) -> None:
    lives = agents(2, frozen, link=link)
    assert lives[0] == lives[1] and lives[0][0] is True


# Several models and optimizers


def gan(agent: Agent, together: bool) -> str:
    torch.manual_seed(agent.rank)
    maker, judge = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    makes, judges = torch.optim.Adam(maker.parameters(), 0.01), torch.optim.SGD(judge.parameters(), 0.01)
    if together:
        maker, judge, makes, judges = agent.prepare(maker, judge, makes, judges)
    else:
        maker, makes = agent.prepare(maker, makes)
        judge, judges = agent.prepare(judge, judges)
    for step in range(4):
        noise = numbers(5, 2, seed=10 * step + agent.rank)
        judges.zero_grad()
        judge(maker(noise).detach()).mean().backward()
        judges.step()
        makes.zero_grad()
        (-judge(maker(noise)).mean()).backward()
        makes.step()
    return agent.digest()


@every_link
@pytest.mark.parametrize("together", [True, False], ids=["one prepare", "two prepares"])
def test_two_models_with_two_optimizers_stay_alike(together: bool, link: str) -> None:
    assert len(set(agents(2, gan, together, link=link))) == 1


# Buffers


def normed(agent: Agent, rule: Any) -> list[list[float]]:
    net = nn.BatchNorm1d(3)
    net = agent.prepare(net, buffers=rule)
    for step in range(3):
        x = numbers(8, 3, seed=10 * step + agent.rank) + agent.rank
        net(x).square().sum().backward()
    assert int(net.num_batches_tracked) == 3
    return [net.running_mean.tolist(), net.running_var.tolist()]


def statistics(rank: int) -> list[list[float]]:
    """What the agent alone would have."""
    net = nn.BatchNorm1d(3)
    for step in range(3):
        net(numbers(8, 3, seed=10 * step + rank) + rank)
    return [net.running_mean.tolist(), net.running_var.tolist()]  # type: ignore[union-attr]


@every_link
def test_buffers_become_the_mean_the_first_agents_or_stay(link: str) -> None:
    """(Running statistics are linear in each batch's: the mean of all steps is the mean of what each has alone.)"""
    lives = agents(2, normed, "mean", link=link)
    assert lives[0] == lives[1]
    for got, a, b in zip(lives[0], statistics(0), statistics(1), strict=True):
        assert torch.allclose(torch.tensor(got), (torch.tensor(a) + torch.tensor(b)) / 2, atol=1e-6)
    lives = agents(2, normed, "broadcast", link=link)
    assert lives[0] == lives[1]
    assert torch.allclose(torch.tensor(lives[0]), torch.tensor(statistics(0)), atol=1e-6)
    lives = agents(2, normed, "local", link=link)
    assert lives == [statistics(0), statistics(1)]


# Start


def starts_otherwise(agent: Agent) -> tuple[str, list[float]]:
    torch.manual_seed(agent.rank)
    norm = nn.BatchNorm1d(3)
    assert norm.running_mean is not None and norm.num_batches_tracked is not None
    norm.running_mean.fill_(agent.rank + 5)
    norm.num_batches_tracked.fill_(agent.rank + 7)
    agent.prepare(nn.Sequential(nn.Linear(3, 3), norm))
    return agent.digest(), [*norm.running_mean.tolist(), float(norm.num_batches_tracked)]


@every_link
def test_all_begin_with_the_first_agents_weights_and_buffers(link: str) -> None:
    lives = agents(3, starts_otherwise, link=link)
    assert len({digest for digest, _ in lives}) == 1
    assert lives[2][1] == [5, 5, 5, 7]


def weighs_much(agent: Agent) -> str:
    """More weights than go through the courier's scratch memory at once, of sizes that do not divide it."""
    torch.manual_seed(agent.rank)
    agent.prepare(nn.Linear(1201, 1301))
    return agent.digest()


def test_weights_larger_than_the_scratch_memory_are_spread_too() -> None:
    assert len(set(agents(2, weighs_much))) == 1
