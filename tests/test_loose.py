"""Agents that train by themselves and exchange drifts: identities, deaths, newcomers, checkpoints."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import agents
from torch import Tensor, nn
from torch.nn import functional

from stretto.agent import Agent

pytestmark = pytest.mark.network
SAMPLES, FEATURES, CLASSES, BATCH = 61, 12, 5, 4
every_link = pytest.mark.parametrize("link", ["tcp", "shm"])


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def model() -> nn.Sequential:
    torch.manual_seed(8)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES)).double()


def weights(net: nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten() for p in net.parameters()]).tolist()


def train(
    agent: Agent,
    strategy: str,
    momentum: float = 0.0,
    place: str | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    net, optimizer = agent.prepare(net, optimizer, strategy=strategy)
    shard = agent.shard(data(), BATCH, epochs=2, seed=3)
    resumed = agent.checkpoint(place, every=0.0) if place else False
    for x, y in itertools.islice(shard, steps):
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    if steps is not None:
        agent.synchronise()
    return {
        "digest": agent.digest(),
        "weights": weights(net),
        "proof": shard.proof(),
        "steps": agent.steps,
        "resumed": resumed,
    }


def close(a: list[float], b: list[float], within: float = 1e-12) -> bool:
    return (torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)).abs().max().item() <= within


@every_link
def test_local_sgd_after_every_batch_is_all_reduce_for_sgd(link: str) -> None:
    """Also where agents' batches differ in size, as they do here."""
    local, reduced = (agents(3, train, s, link=link) for s in ("local_sgd(1)", "allreduce"))
    assert len({life["digest"] for life in local}) == 1
    assert close(local[0]["weights"], reduced[0]["weights"])
    assert local[0]["proof"] == reduced[0]["proof"] and local[0]["steps"] == reduced[0]["steps"]


def test_diloco_without_momentum_and_at_rate_one_is_local_sgd() -> None:
    diloco, local = (agents(3, train, s, 0.9) for s in ("diloco(4, 1.0, 0.0)", "local_sgd(4)"))
    assert close(diloco[0]["weights"], local[0]["weights"])


def test_post_local_sgd_is_all_reduce_up_to_its_start() -> None:
    post, reduced = (agents(2, train, s) for s in ("post_local_sgd(100, 4)", "allreduce"))
    assert close(post[0]["weights"], reduced[0]["weights"])


@every_link
@pytest.mark.parametrize("strategy", ["local_sgd(4)", "diloco(3)", "diloco(5, codec=int4)", "post_local_sgd(3, 4)"])
def test_all_end_alike_and_every_sample_is_trained_once(strategy: str, link: str) -> None:
    lives = agents(3, train, strategy, 0.9, link=link)
    assert len({life["digest"] for life in lives}) == 1
    assert all("exactly once" in life["proof"] for life in lives)


@pytest.mark.parametrize("strategy", ["local_sgd(4, topology=ring)", "diloco(3, codec=feedback(topk(0.1)))"])
def test_what_goes_on_from_a_checkpoint_goes_on_bit_for_bit(strategy: str, tmp_path: Path) -> None:
    place = str(tmp_path / "saved")
    agents(3, train, strategy, 0.9, place, 5)
    lives = agents(3, train, strategy, 0.9, place)
    assert all(life["resumed"] for life in lives)
    whole = agents(3, train, strategy, 0.9)
    assert len({life["digest"] for life in lives}) == 1
    assert all("exactly once" in life["proof"] for life in lives) and lives[0]["steps"] == whole[0]["steps"]
