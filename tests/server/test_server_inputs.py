"""What servers cannot be asked for is refused in words, where it is written or when it is prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lives import BATCH, data, model
from processes import agents
from torch import nn
from torch.nn import functional
from torch.optim import LBFGS, SGD, Adafactor, Rprop
from torch.utils.data import IterableDataset

from stretto.agent import Agent
from stretto.errors import Disagreement, PeerLost, UsageError
from stretto.text import parse

SERVED = ["asp", "ssp(2)", "bsp"]


@pytest.mark.parametrize("name", ["asp", "ssp", "bsp"])
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("codec=lowrank", "codec.*lowrank.*int8"),
        ("pull=lowrank", "lowrank.*int8"),
        ("replicas=-1", "replicas counts the holders of a slot; 2 survives a death, 0 chooses"),
        ("slot=1.5", "slot is a size in bytes, such as 1048576; 0 chooses"),
        ("codec=int7", "int7"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_do(name: str, argument: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        parse(f"{name}({argument})", "strategy")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ssp(-1)", "staleness counts steps: 0, or such as 4, or none"),
        ("ssp(1.5)", "staleness counts steps"),
        ("ssp(0, damped=true)", "with staleness 0 no gradient is stale; leave damped out"),
        ("ssp(0, compensate=0.1)", "with staleness 0 no gradient is stale; leave compensate out"),
        ("asp(compensate=-1.0)", "compensate must be 0 or above; 0.04 is usual"),
    ],
)
def test_a_bound_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(text, "strategy")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(12), 0)] * 8)


def lbfgs(agent: Agent, strategy: str) -> None:
    net = model()
    agent.prepare(net, LBFGS(net.parameters()), strategy=strategy)


def rprop(agent: Agent, strategy: str) -> None:
    net = model()
    agent.prepare(net, Rprop(net.parameters()), strategy=strategy)


def adafactor(agent: Agent, strategy: str) -> None:
    net = model()
    agent.prepare(net, Adafactor(net.parameters()), strategy=strategy)


class Mine(SGD):
    """Its step may be anything."""


def my_own(agent: Agent, strategy: str) -> None:
    net = model()
    agent.prepare(net, Mine(net.parameters(), lr=0.1), strategy=strategy)


def two_optimizers(agent: Agent, strategy: str) -> None:
    net = model()
    first, *others = net.parameters()
    agent.prepare(net, SGD([first], lr=0.1), SGD(others, lr=0.1), strategy=strategy)


def none(agent: Agent, strategy: str) -> None:
    agent.prepare(model(), strategy=strategy)


def prepared_twice(agent: Agent, strategy: str) -> None:
    for _ in range(2):
        net = model()
        agent.prepare(net, SGD(net.parameters(), lr=0.1), strategy=strategy)


def a_stream(agent: Agent, strategy: str) -> None:
    net = model()
    agent.prepare(net, SGD(net.parameters(), lr=0.1), strategy=strategy)
    agent.shard(Stream(), BATCH)


def balanced(agent: Agent, strategy: str) -> None:
    net = model()
    agent.prepare(net, SGD(net.parameters(), lr=0.1), strategy=strategy)
    agent.shard(data(), BATCH, balance=True)


def an_option_of_a_group(agent: Agent, strategy: str) -> None:
    net = model()
    first, *others = net.parameters()
    groups: Any = [{"params": [first], "nesterov": True, "momentum": 0.9}, {"params": others}]
    agent.prepare(net, SGD(groups, lr=0.1), strategy=strategy)


def sparse_with_momentum(agent: Agent, strategy: str) -> None:
    net = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(4, 2))
    net, optimizer = agent.prepare(net, SGD(net.parameters(), lr=0.1, momentum=0.9), strategy=strategy)
    for x, y in agent.shard((torch.arange(10)[:, None], torch.zeros(10, dtype=torch.int64)), 2):
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


REFUSED: dict[str, tuple[Callable[..., None], str]] = {
    "LBFGS": (lbfgs, r"cannot step with torch.optim.*LBFGS.*take SGD, Adam, .*allreduce\(\)"),
    "Rprop": (rprop, "cannot step with torch.optim.*Rprop.*take SGD"),
    "Adafactor": (adafactor, "cannot step with torch.optim.*Adafactor.*take SGD"),
    "an optimizer of one's own": (my_own, "cannot step with .*Mine.*take SGD"),
    "two optimizers": (two_optimizers, "2 optimizers; servers step with one: .*a param group for each of its parts"),
    "no optimizer": (none, "0 optimizers; servers step with one"),
    "prepared twice": (prepared_twice, "prepared once: give prepare.. all at once"),
    "a stream": (a_stream, "Stream is a stream, and a server leases samples by their numbers: use a map-style"),
    "balance": (balanced, "leave balance out"),
    "an option of one group": (an_option_of_a_group, "param group 1 has nesterov=False and group 0 has True"),
    "momentum of a table": (sparse_with_momentum, "cannot step a table with momentum=0.9.*a param group with momentum"),
}


@pytest.mark.network
@pytest.mark.parametrize("what", REFUSED)
def test_all_agents_are_told_in_words(what: str) -> None:
    """All alike, and nobody waits for anybody."""
    tried, said = REFUSED[what]
    strategy = SERVED[len(what) % 3]
    for end in agents(2, tried, strategy, keep_errors=True):
        assert isinstance(end, UsageError | PeerLost), end
    with pytest.raises(UsageError, match=said):
        agents(2, tried, strategy)


def others_model(agent: Agent, strategy: str, what: str) -> None:
    net = model(17 if agent.rank and what == "model" else 16)
    lr, momentum = 0.1, 0.9 if agent.rank and what == "numbers" else 0.0
    parameters: Any = net.parameters()
    if agent.rank and what == "groups":
        first, *rest = net.parameters()
        parameters = [{"params": [first]}, {"params": rest}]
    optimizer = SGD(parameters, lr=lr, momentum=momentum)
    if agent.rank and what == "optimizer":
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    agent.prepare(net, optimizer, strategy=strategy if not (agent.rank and what == "strategy") else "allreduce")


@pytest.mark.network
@pytest.mark.parametrize("what", ["model", "groups", "optimizer", "strategy"])
def test_agents_that_bring_different_things_hear_whose_differ(what: str) -> None:
    ends = agents(2, others_model, "asp", what, keep_errors=True)
    assert all(isinstance(end, Disagreement) for end in ends), ends
