"""Agents die at chosen moments, as real processes: training goes on, and no step and no sample is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lives import BATCH, KILLED, SAMPLES, close, data, every_link, kill_both, model
from processes import Run, running
from torch import nn
from torch.nn import functional
from trainings import sgd, weights

from stretto.agent import Agent
from stretto.data import Shard
from stretto.errors import StrettoError

pytestmark = pytest.mark.network
WIDE = 600
"""A width whose gradients take several buckets."""


def kill_courier(agent: Agent) -> None:
    assert agent._courier is not None
    os.kill(agent._courier._pid, signal.SIGKILL)


class Deaths:
    """Who dies when: ``[label, step, moment]``, in their first lives."""

    def __init__(self, agent: Agent, life: int, deaths: list[tuple[int, int, str]], net: nn.Sequential) -> None:
        self._agent = agent
        self._mine = {(step, moment) for label, step, moment in deaths if label == agent.label and not life}
        net[0].weight.register_hook(lambda grad: self.at("within backward"))

    def at(self, moment: str) -> None:
        if (self._agent.steps, moment) in self._mine:
            kill_both()
        if (self._agent.steps, f"{moment}: its courier") in self._mine:
            kill_courier(self._agent)


def witnessed(agent: Agent, shard: Shard) -> Shard:
    """Tell the trace whose samples every step trained."""
    commit = shard.committed

    def committed(by: Any = None, *, but: int = 0) -> None:
        labels = [m.label for m in agent.epoch.members if by is None or m.uid in by]
        agent.trace.event("trained", step=agent.steps - 1, by=labels)
        commit(by, but=but)

    shard.committed = committed  # type: ignore[method-assign]
    return shard


def train(
    agent: Agent,
    life: int,
    deaths: list[tuple[int, int, str]] = [],  # noqa: B006
    strategy: str = "allreduce",
    epochs: int = 2,
    width: int = 16,
) -> dict[str, Any]:
    net = model(width)
    if agent.label or life:
        with torch.no_grad():
            [p.zero_() for p in net.parameters()]
    fatal = Deaths(agent, life, deaths, net)
    net, optimizer = agent.prepare(net, sgd(net), strategy=strategy)
    shard = witnessed(agent, agent.shard(data(), BATCH, epochs=epochs, seed=3))
    for x, y, numbers in shard:
        agent.trace.event("drawn", step=agent.steps, samples=numbers.tolist())
        fatal.at("before backward")
        functional.cross_entropy(net(x), y).backward()
        agent.trace.event("stepped", step=agent.steps, digest=agent.digest())
        optimizer.step()
        optimizer.zero_grad()
        fatal.at("after the step")
    return {
        "digest": agent.digest(),
        "weights": weights(net),
        "proof": shard.proof(),
        "steps": agent.steps,
        "labels": list(agent.epoch.labels),
    }


def replayed(run: Run, witness: int, width: int = 16) -> list[float]:
    """The weights of one process that trains, step by step, what life ``witness`` says was trained by whom."""
    drawn: dict[tuple[int, int], list[int]] = {}
    for life in run.lives:
        for event in life.events("drawn"):
            drawn.setdefault((life.child.rank, event["step"]), event["samples"])
    net = model(width)
    optimizer = sgd(net)
    x, y, _ = data()
    for event in run.lives[witness].events("trained"):
        batch = [sample for label in event["by"] for sample in drawn[label, event["step"]]]
        functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(net)


def check_survivors(run: Run, dead: set[int], width: int = 16) -> list[Any]:
    """All others end alike, with every sample trained once an epoch, as one process would."""
    ends = run.results()
    left = [end for label, end in enumerate(ends) if label not in dead]
    assert all(isinstance(end, dict) for end in left), ends
    assert all(end == left[0] for end in left)
    assert left[0]["labels"] == [label for label in range(len(ends)) if label not in dead]
    assert left[0]["proof"].startswith(f"{SAMPLES} samples, each exactly once in each of 2 epochs; ledger ")
    witness = next(label for label in range(len(ends)) if label not in dead)
    assert close(left[0]["weights"], replayed(run, witness, width), 1e-6)
    return ends


@every_link
@pytest.mark.parametrize(
    ("label", "step", "moment"),
    [
        (0, 0, "before backward"),
        (1, 3, "within backward"),
        (2, 4, "after the step"),
        (1, 2, "before backward: its courier"),
        (2, 3, "within backward: its courier"),
    ],
)
def test_whoever_is_killed_at_whatever_step_the_others_lose_no_step_and_no_sample(
    link: str, label: int, step: int, moment: str, tmp_path: Path
) -> None:
    with running(3, train, [(label, step, moment)], "allreduce", 2, WIDE, folder=tmp_path, link=link) as run:
        gone = check_survivors(run, {label}, WIDE)[label]
    if "courier" in moment:
        assert isinstance(gone, StrettoError) and "courier" in str(gone)
    else:
        assert gone == KILLED


@pytest.mark.parametrize("topology", ["ring", "star", "tree", "double_tree", "butterfly", "hierarchical(star, tree)"])
def test_a_death_costs_no_step_on_any_topology(topology: str, tmp_path: Path) -> None:
    strategy = f"allreduce(topology={topology})"
    with running(4, train, [(1, 2, "within backward")], strategy, folder=tmp_path) as run:
        check_survivors(run, {1})


@every_link
def test_several_may_die_one_after_the_other_down_to_one(link: str, tmp_path: Path) -> None:
    deaths = [(3, 1, "before backward"), (0, 2, "within backward"), (1, 4, "after the step")]
    with running(4, train, deaths, folder=tmp_path, link=link) as run:
        check_survivors(run, {0, 1, 3})
