"""That agents which never wait for each other learn as well as those that always do."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from processes import agents
from torch import nn
from torch.optim import Optimizer

from stretto.agent import Agent
from stretto.data import Shard
from stretto.workloads import WORKLOADS

pytestmark = [pytest.mark.network, pytest.mark.slow]
SIZE, EPOCHS, BATCH, SEEDS = 8, WORKLOADS["digits"].epochs, 16, 3
WORKLOAD = WORKLOADS["digits"]


def right(net: nn.Module) -> float:
    """The share of right answers to the test data."""
    given, wanted = WORKLOAD.load(None).test
    with torch.no_grad():
        return float((net.eval()(given).argmax(-1) == wanted).float().mean())


def slow_down(optimizer: Optimizer, epoch: int) -> None:
    """Smaller steps from epoch to epoch: all agents are in the same one, however many steps they made."""
    for group in optimizer.param_groups:
        group["lr"] = WORKLOAD.lr * (1 - epoch / EPOCHS)


def learn(agent: Agent, seed: int) -> dict[str, Any]:
    """Digits. The last agent takes ten times as long for each batch as the others."""
    torch.manual_seed(seed)
    net = WORKLOAD.model("mlp")
    net, optimizer = agent.prepare(net, WORKLOAD.optimizer(net), strategy="asp")
    shard = agent.shard(WORKLOAD.load(None).train, BATCH, epochs=EPOCHS, seed=seed)
    for x, y in shard:
        slow_down(optimizer, shard.epoch)
        WORKLOAD.loss(net(x), y).backward()
        time.sleep(0.04 if agent.rank == SIZE - 1 else 0.004)
        optimizer.step()
        optimizer.zero_grad()
    return {"right": right(net), "digest": agent.digest(), "proof": shard.proof()}


def whole(seed: int) -> float:
    """All-reduce: one process that trains the batches of all at once."""
    torch.manual_seed(seed)
    net = WORKLOAD.model("mlp")
    optimizer = WORKLOAD.optimizer(net)
    shard = Shard(WORKLOAD.load(None).train, SIZE * BATCH, epochs=EPOCHS, seed=seed)
    for x, y in shard:
        slow_down(optimizer, shard.epoch)
        WORKLOAD.loss(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return right(net)


def test_asp_with_one_slow_agent_of_eight_learns_as_well_as_all_reduce() -> None:
    """At its learning rates, after as many epochs: within one point of it, in the mean of three seeds."""
    runs = [agents(SIZE, learn, seed, deadline=60.0) for seed in range(SEEDS)]
    assert all(life["digest"] == lives[0]["digest"] for lives in runs for life in lives)
    assert all(f"each exactly once in each of {EPOCHS} epochs" in lives[0]["proof"] for lives in runs)
    alone, reduced = ([lives[0]["right"] for lives in runs], [whole(seed) for seed in range(SEEDS)])
    assert sum(alone) >= sum(reduced) - 0.01 * SEEDS, (alone, reduced)
