"""Gradients that land one step late: what is computed, who may come in when, and what a checkpoint has of it."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lives import BATCH, KILLED, alike, close, data, every_link, further, model, others, stay
from processes import agents, running
from torch.nn import functional
from trainings import weights

from stretto.agent import Agent
from stretto.errors import UsageError
from stretto.strategies import delayed

pytestmark = pytest.mark.network


def train(
    agent: Agent, strategy: str, place: str | None = None, steps: int | None = None, momentum: float = 0.9
) -> dict[str, Any]:
    net = model()
    net, optimizer = agent.prepare(
        net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum), strategy=strategy
    )
    shard = agent.shard(data(), BATCH, epochs=2, seed=3)
    resumed = agent.checkpoint(place, every=1000.0) if place else False
    for x, y, _ in itertools.islice(shard, steps):
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"weights": weights(net), "proof": shard.proof(), "steps": agent.steps, "resumed": resumed}


def by_hand(agent: Agent) -> list[float]:
    """One process on the whole batches, each step by the gradient before; the last makes up for it."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    shard = agent.shard(data(), 3 * BATCH, epochs=2, seed=3)
    before = [torch.zeros_like(p) for p in net.parameters()]
    for x, y, _ in shard:
        now = torch.autograd.grad(functional.cross_entropy(net(x), y), list(net.parameters()))
        for p, g, later in zip(net.parameters(), before, now, strict=True):
            p.grad = g + later if shard.ends else g
        before = list(now)
        optimizer.step()
    return weights(net)


@every_link
def test_every_step_is_made_by_the_mean_gradient_of_the_step_before(link: str) -> None:
    lives = agents(3, train, "delayed", link=link)
    assert close(lives[0]["weights"], agents(1, by_hand)[0])
    assert all(life == lives[0] for life in lives)
    assert "exactly once in each of 2 epochs" in lives[0]["proof"]


def test_an_agent_alone_is_as_late_as_several() -> None:
    alone, three = agents(1, train, "delayed"), agents(3, train, "delayed")
    assert alone[0]["steps"] > three[0]["steps"]
    assert "exactly once" in alone[0]["proof"]


@pytest.mark.parametrize("strategy", ["delayed(allreduce(topology=star, codec=int8))", "delayed(demo)"])
def test_any_gradient_strategy_may_be_late(strategy: str) -> None:
    lives = agents(3, train, strategy)
    assert all(life == lives[0] for life in lives)


@pytest.mark.parametrize("size", [3, 1])
def test_what_has_not_landed_is_in_the_checkpoint(size: int, tmp_path: Path) -> None:
    place, strategy = str(tmp_path / "saved"), "delayed(allreduce(topology=ring))"
    agents(size, train, strategy, place, 5)
    lives, whole = agents(size, train, strategy, place), agents(size, train, strategy)
    assert all(life.pop("resumed") for life in lives) and not any(life.pop("resumed") for life in whole)
    assert lives == whole


def stay_late(agent: Agent, life: int, stop: str) -> dict[str, Any]:
    return stay(agent, life, stop, strategy="delayed")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_who_comes_back_comes_in_where_nothing_is_under_way(how: signal.Signals, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(3, stay_late, str(stop), folder=tmp_path) as run:
        run.lives[1].wait("stepped", drawn=12)
        run.lives[1].signal(how)
        others(run, 0, 2)
        if how == signal.SIGSTOP:
            run.lives[1].signal(signal.SIGCONT)
        back = run.lives[1] if how == signal.SIGSTOP else run.start(1)
        back.wait("healed")
        further(run, 1 if how == signal.SIGSTOP else 3, 7)
        stop.touch()
        ends = run.results()
    if how == signal.SIGKILL:
        assert ends.pop(1) == KILLED
    alike(ends, [0, 1, 2])


@pytest.mark.parametrize(
    ("strategy", "steps", "says"),
    [("diloco", 1, "streaming_diloco"), ("allreduce", 2, "steps=1"), ("delayed", 1, "steps=1")],
)
def test_what_cannot_be_late_is_refused(strategy: str, steps: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        delayed(strategy, steps)
