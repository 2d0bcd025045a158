"""Agents on servers that go each at its own pace: every sample once, all alike at the end, and never too far apart."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lives import BATCH, SAMPLES, data, every_link, model
from processes import agents, running
from pushers import OPTIMIZERS, train
from torch.nn import functional

from stretto.agent import Agent
from stretto.errors import UsageError

pytestmark = pytest.mark.network


def once_an_epoch(lives: list[dict[str, Any]], epochs: int = 2) -> None:
    """What they drew, and what their proof says."""
    drawn = Counter(sample for life in lives for batch in life["drawn"] for sample in batch)
    assert drawn == Counter(list(range(SAMPLES)) * epochs)
    assert all(f"{SAMPLES} samples, each exactly once in each of {epochs} epochs" in life["proof"] for life in lives)


@pytest.mark.parametrize(
    ("strategy", "size", "link"),
    [
        ("asp", 1, "tcp"),
        ("asp", 2, "shm"),
        ("asp", 4, "tcp"),
        ("asp", 2, "c10d"),
        ("bsp", 2, "c10d"),
        ("ssp(1)", 3, "tcp"),
        ("ssp(2, slot=1024)", 4, "shm"),
        ("ssp(3, codec=int8, damped=true)", 3, "tcp"),
        ("asp(codec=feedback(topk(0.1)), pull=int8)", 3, "shm"),
        ("asp(compensate=0.04, replicas=1)", 3, "tcp"),
        ("bsp(codec=int8)", 3, "tcp"),
        ("bsp(pull=int8)", 3, "tcp"),
    ],
)
def test_every_sample_is_trained_once_and_all_end_alike(strategy: str, size: int, link: str) -> None:
    lives = agents(size, train, strategy, link=link)
    once_an_epoch(lives)
    assert len({life["digest"] for life in lives}) == 1
    assert len({life["steps"] for life in lives}) == 1


# One stands still


def stand(agent: Agent, life: int, strategy: str, at: int, go: str) -> dict[str, Any]:
    """Two epochs. Agent 1 stands still in its step ``at`` until the file ``go`` is there."""
    net = model()
    net, optimizer = agent.prepare(net, OPTIMIZERS["sgd"](net.parameters()), strategy=strategy)
    shard = agent.shard(data(), BATCH, epochs=2, seed=3)
    drawn = []
    for x, y, numbers in shard:
        drawn.append(numbers.tolist())
        agent.trace.event("begin", step=len(drawn))
        if agent.label == 1 and len(drawn) == at:
            while not Path(go).exists():
                time.sleep(0.005)
        functional.cross_entropy(net(x), y).backward()
        agent.trace.event("push", step=len(drawn))
        optimizer.step()
        optimizer.zero_grad()
    return {"digest": agent.digest(), "drawn": drawn, "proof": shard.proof()}


@every_link
@pytest.mark.parametrize("bound", [1, 3])
def test_others_come_as_far_ahead_as_the_bound_says_and_no_further(bound: int, link: str, tmp_path: Path) -> None:
    at, go = 3, tmp_path / "go"
    with running(3, stand, f"ssp({bound})", at, str(go), folder=tmp_path, link=link) as run:
        run.lives[1].wait("begin", step=at)
        for label in (0, 2):
            run.lives[label].wait("push", step=at + bound)  # they would go on, if they might
        time.sleep(0.1)
        assert [run.lives[label].events("begin")[-1]["step"] for label in (0, 1, 2)] == [at + bound, at, at + bound]
        go.touch()
        lives = run.results()
    once_an_epoch(lives)
    assert len({life["digest"] for life in lives}) == 1


@every_link
def test_without_a_bound_others_train_all_that_is_left(link: str, tmp_path: Path) -> None:
    """And then one batch is left for the slow one: the one that it has."""
    at, go = 3, tmp_path / "go"
    with running(3, stand, "asp", at, str(go), folder=tmp_path, link=link) as run:
        run.lives[1].wait("begin", step=at)
        batches = -(-SAMPLES // BATCH) * 2
        ends = time.monotonic() + 20
        while sum(len(run.lives[label].events("begin")) for label in (0, 1, 2)) < batches and time.monotonic() < ends:
            time.sleep(0.01)
        go.touch()
        lives = run.results()
    once_an_epoch(lives)
    assert len(lives[1]["drawn"]) == at
    assert len({life["digest"] for life in lives}) == 1


def averages(agent: Agent, strategy: str) -> float:
    net = model()
    net, optimizer = agent.prepare(net, OPTIMIZERS["sgd"](net.parameters()), strategy=strategy)
    for x, y, _ in agent.shard(data(), BATCH, seed=3):
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if strategy != "bsp":
            with pytest.raises(UsageError, match="each goes at its own pace: call it when all batches are trained"):
                agent.mean(1.0)
        else:
            agent.mean(1.0)
    return agent.mean(float(agent.rank))


@pytest.mark.parametrize("strategy", ["asp", "ssp(1)", "bsp"])
def test_a_mean_over_agents_is_for_where_all_are_at_the_same_step(strategy: str) -> None:
    assert agents(3, averages, strategy) == [1.0] * 3
