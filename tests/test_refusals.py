"""What agents cannot do together is refused in words, on every agent that asks for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import every_link
from processes import agents
from torch import nn

import stretto
from stretto.agent import Agent
from stretto.errors import Disagreement, PeerLost, UsageError

pytestmark = pytest.mark.network


def differing(agent: Agent) -> None:
    agent.prepare(nn.Sequential(nn.Linear(4, 4 + (agent.rank == 1)), nn.ReLU()))


def differing_strategies(agent: Agent) -> None:
    agent.prepare(
        nn.Linear(2, 2), strategy="allreduce(topology=ring)" if agent.rank == 1 else "allreduce(topology=star)"
    )


def differing_buffers(agent: Agent) -> None:
    agent.prepare(nn.Linear(2, 2), buffers="local" if agent.rank == 1 else "mean")


def differing_optimizers(agent: Agent) -> None:
    net = nn.Linear(2, 2)
    kind = torch.optim.Adam if agent.rank == 1 else torch.optim.SGD
    agent.prepare(net, kind(net.parameters(), 0.1))


@every_link
@pytest.mark.parametrize(
    ("asks", "word"),
    [
        (differing, "0.weight"),
        (differing_strategies, "topology=ring"),
        (differing_buffers, "buffers local"),
        (differing_optimizers, "Adam"),
    ],
    ids=["models", "strategies", "buffers", "optimizers"],
)
def test_agents_that_bring_different_things_are_all_told_who_and_what(asks: Any, word: str, link: str) -> None:
    ends = agents(3, asks, link=link, keep_errors=True)
    assert all(isinstance(e, Disagreement) for e in ends), ends
    assert len({str(e) for e in ends}) == 1
    assert "agent 1 differs from agent 0" in str(ends[0]) and word in str(ends[0])


def embeds_sparsely(agent: Agent) -> None:
    net = agent.prepare(nn.Embedding(10, 3, sparse=True))
    net(torch.tensor([1, 2])).sum().backward()


@every_link
def test_sparse_gradients_are_refused(link: str) -> None:
    ends = agents(2, embeds_sparsely, link=link, keep_errors=True)
    told = [e for e in ends if not (link == "c10d" and isinstance(e, PeerLost))]  # there one's end is everybody's
    assert told and all(isinstance(e, UsageError) and "sparse=False" in str(e) for e in told)


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        (lambda: (nn.Linear(2, 2), torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)), "no prepared model"),
        (lambda: (nn.Linear(2, 2, device="meta"),), "on meta"),
        (lambda: (nn.Linear(2, 2, dtype=torch.complex64),), "complex64"),
        (lambda: (), "no model"),
        (lambda: (nn.Linear(2, 2), "a string"), "not a str"),
    ],
    ids=["an optimizer of another model", "another device", "another dtype", "nothing", "something else"],
)
def test_what_cannot_be_prepared_is_refused_also_alone(objects: Any, words: str) -> None:
    with stretto.join(environ={}) as agent, pytest.raises(UsageError, match=words):
        agent.prepare(*objects())


@pytest.mark.parametrize("strategy", ["allreduce(codec={})", "diloco(4, codec=feedback({}))"])
def test_a_codec_for_layers_that_no_model_has_is_refused_when_it_is_prepared(strategy: str) -> None:
    with (
        stretto.join(environ={}) as agent,
        pytest.raises(UsageError, match=r"'head\.\*' fits no parameter of weight"),
    ):
        agent.prepare(nn.Linear(2, 2), strategy=strategy.format("per_layer({'head.*': int4})"))


def test_a_model_is_prepared_once() -> None:
    with stretto.join(environ={}) as agent:
        net = agent.prepare(nn.Linear(2, 2))
        with pytest.raises(UsageError, match="prepared before"):
            agent.prepare(net)
