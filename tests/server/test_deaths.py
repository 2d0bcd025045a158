"""Every agent holds a part of the model, and any of them may die: the others have all of it, and train on."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lives import BATCH, KILLED, SAMPLES, data, every_link, kill_both, model
from processes import DEADLINE, Run, running
from pushers import OPTIMIZERS
from torch import nn
from torch.nn import functional
from trainings import FEATURES

from stretto.agent import Agent

pytestmark = pytest.mark.network
STRATEGIES = ["asp(slot=1024)", "ssp(2, slot=1024)", "bsp(slot=1024)", "delayed_nesterov(1, slot=1024)"]


def finish(agent: Agent, life: int, strategy: str, dies: dict[str, str], epochs: int) -> dict[str, Any]:
    """So many epochs. ``dies``: by label ``"STEP MOMENT"``, in its first life: having drawn, or having pushed."""
    net = model()
    net, optimizer = agent.prepare(net, OPTIMIZERS["momentum"](net.parameters()), strategy=strategy)
    shard = agent.shard(data(), BATCH, epochs=epochs, seed=3)
    for x, y, numbers in shard:
        agent.trace.event("drawn", step=shard.drawn, samples=numbers.tolist())
        functional.cross_entropy(net(x), y).backward()
        for moment in ("drawn", "pushed"):
            if moment == "pushed":
                optimizer.step()
                agent.trace.event("pushed", step=shard.drawn)
            if life == 0 and dies.get(str(agent.label)) == f"{shard.drawn} {moment}":
                kill_both()
        if life == 0 and dies.get(str(agent.label)) == f"{shard.drawn} leaves":
            agent.leave()
            return {}
        optimizer.zero_grad()
        time.sleep(0.001)
    return {
        "digest": agent.digest(),
        "proof": shard.proof(),
        "steps": agent.steps,
        "labels": sorted(agent.epoch.labels),
    }


def until(true: Callable[[], bool]) -> None:
    """Wait for it."""
    ends = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.01)


def drawn(run: Run) -> Counter[int]:
    """How often every sample was drawn, in all lives."""
    events = [event for life in run.lives for event in life.events("drawn")]
    return Counter(sample for event in events for sample in event["samples"])


def last(run: Run, number: int) -> Counter[int]:
    """The samples of the last batch of a life."""
    return Counter(run.lives[number].events("drawn")[-1]["samples"])


def once_an_epoch(end: dict[str, Any], epochs: int) -> None:
    assert f"{SAMPLES} samples, each exactly once" in end["proof"]
    assert epochs == 1 or f"in each of {epochs} epochs" in end["proof"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("moment", ["drawn", "pushed"])
def test_what_the_dead_had_not_pushed_is_trained_by_others(
    strategy: str, label: int, moment: str, tmp_path: Path
) -> None:
    """And what it had, is not: also when it was first in the chain of a slot, or the last."""
    with running(3, finish, strategy, {str(label): f"3 {moment}"}, 2, folder=tmp_path) as run:
        ends = run.results()
        twice = drawn(run) - Counter(list(range(SAMPLES)) * 2)
        assert twice == (last(run, label) if moment == "drawn" else Counter())
    assert ends.pop(label) == KILLED and ends[0] == ends[1]
    once_an_epoch(ends[0], 2)
    assert ends[0]["labels"] == sorted({0, 1, 2} - {label})


def stay(agent: Agent, life: int, strategy: str, stop: str) -> dict[str, Any]:
    """Pass after pass over the data, of two epochs, until the file ``stop`` is there."""
    net = nn.Sequential(nn.BatchNorm1d(FEATURES, dtype=torch.float64), *model())
    net, optimizer = agent.prepare(net, OPTIMIZERS["momentum"](net.parameters()), strategy=strategy)
    shard = agent.shard(data(), BATCH, epochs=2, seed=3)
    proofs = []
    while not proofs or agent.mean(float(Path(stop).exists())) == 0:
        for x, y, _ in shard:
            functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            agent.trace.event("stepped", drawn=len(proofs))
            time.sleep(0.002)
        proofs.append(shard.proof())
    once = f"{SAMPLES} samples, each exactly once in each of 2 epochs"
    return {
        "digest": agent.digest(),
        "once": all(once in proof for proof in proofs),
        "proof": proofs[-1],
        "labels": sorted(agent.epoch.labels),
    }


@every_link
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_after_the_other_dies_and_comes_again_and_trains_on(strategy: str, link: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(4, stay, strategy, str(stop), folder=tmp_path, link=link) as run:
        for number, label in enumerate((0, 2, 1)):
            run.lives[label].wait("stepped")
            run.lives[label].signal(signal.SIGKILL)
            run.lives[3].wait("view", number=2 + 2 * number)
            run.start(label).wait("healed")
            run.lives[-1].wait("stepped")
        stop.touch()
        ends = run.results()
    assert ends[:3] == [KILLED] * 3
    assert all(isinstance(end, dict) and end["once"] for end in ends[3:]), ends
    assert all(end == ends[3] for end in ends[3:]), ends
    assert ends[3]["labels"] == [0, 1, 2, 3]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_may_die_at_once_if_a_third_has_what_they_had(strategy: str, tmp_path: Path) -> None:
    many = strategy.replace("slot", "replicas=3, slot")
    with running(
        4, finish, many, {"0": "3 drawn", "2": "3 drawn"}, 2, folder=tmp_path, environ={"STRETTO_MIN_AGENTS": "1"}
    ) as run:
        ends = run.results()
        assert drawn(run) - Counter(list(range(SAMPLES)) * 2) == last(run, 0) + last(run, 2)
    assert [ends[0], ends[2]] == [KILLED] * 2 and ends[1] == ends[3]
    once_an_epoch(ends[1], 2)


@every_link
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_that_leaves_has_trained_what_it_pushed(strategy: str, link: str, tmp_path: Path) -> None:
    with running(3, finish, strategy, {"0": "3 leaves"}, 2, folder=tmp_path, link=link) as run:
        left, *ends = run.results()
        assert drawn(run) == Counter(list(range(SAMPLES)) * 2)
    assert left == {} and ends[0] == ends[1]
    once_an_epoch(ends[0], 2)
    assert ends[0]["labels"] == [1, 2]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_that_was_stopped_comes_back_with_what_all_have(strategy: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(3, stay, strategy, str(stop), folder=tmp_path) as run:
        for label in (1, 0):
            run.lives[label].wait("stepped")
            run.lives[label].signal(signal.SIGSTOP)
            run.lives[2].wait("view", number=2 if label else 4)
            run.lives[label].signal(signal.SIGCONT)
            run.lives[label].wait("healed")
        stop.touch()
        ends = run.results()
    assert all(isinstance(end, dict) and end["once"] for end in ends), ends
    assert all(end == ends[0] for end in ends) and ends[0]["labels"] == [0, 1, 2], ends


def stand_at_the_end(agent: Agent, life: int, go: str) -> dict[str, Any]:
    """One epoch, of which agent 0 has a last batch until the file ``go`` is there; then all compare something."""
    net = model()
    net, optimizer = agent.prepare(net, OPTIMIZERS["momentum"](net.parameters()), strategy="asp")
    shard = agent.shard(data(), BATCH, seed=3)
    for x, y, numbers in shard:
        agent.trace.event("drawn", step=shard.drawn, samples=numbers.tolist())
        if agent.label == 1:
            kill_both()
        while agent.label == 0 and shard.drawn == 2 and not Path(go).exists():
            time.sleep(0.005)
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"digest": agent.digest(), "proof": shard.proof(), "mean": agent.mean(float(agent.rank))}


@every_link
def test_who_comes_when_all_is_trained_ends_with_the_others(link: str, tmp_path: Path) -> None:
    """It has missed nothing, and what they do next is what it does next."""
    go = tmp_path / "go"
    with running(3, stand_at_the_end, str(go), folder=tmp_path, link=link) as run:
        until(lambda: len(drawn(run)) == SAMPLES)
        run.start(1).wait("prepare")
        time.sleep(0.3)  # it knocks
        go.touch()
        ends = run.results()
    assert ends.pop(1) == KILLED
    assert all(end == ends[0] for end in ends) and ends[0]["mean"] == 1.0, ends
    once_an_epoch(ends[0], 1)
