"""Agents die, are stopped and come again, as real processes: training goes on, and no step and no sample is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lives import BATCH, KILLED, SAMPLES, alike, close, data, every_link, kill_both, model, others, stay
from processes import Run, running
from torch import nn
from torch.nn import functional
from trainings import sgd, weights

from stretto.agent import Agent
from stretto.data import Shard
from stretto.errors import Refused, StrettoError

pytestmark = pytest.mark.network
WIDE = 600
"""A width whose gradients take several buckets."""


# Deaths at chosen moments


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

    def committed(by: Any = None) -> None:
        labels = [m.label for m in agent.epoch.members if by is None or m.uid in by]
        agent.trace.event("trained", step=agent.steps - 1, by=labels)
        commit(by)

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


# They come again


@every_link
def test_one_started_again_is_given_the_state_and_trains_on(link: str, tmp_path: Path) -> None:
    """Weights, momentum, scheduler, scaler, batch norm's statistics and the ledger: of the others, not its own."""
    stop = tmp_path / "stop"
    with running(3, stay, str(stop), "1 0 step", folder=tmp_path, link=link) as run:
        others(run, 0, 2)
        again = run.start(1)
        healed = again.wait("healed")
        assert healed["nbytes"] > 8 * len(weights(model()))
        again.wait("stepped", step=run.lives[0].events("stepped")[-1]["step"] + 2)
        stop.touch()
        ends = run.results()
    assert ends.pop(1) == KILLED
    alike(ends, [0, 1, 2])


def stay_coded(agent: Agent, life: int, stop: str, codec: str) -> dict[str, Any]:
    return stay(agent, life, stop, strategy=f"allreduce(codec={codec})")


@pytest.mark.parametrize("codec", ["feedback(topk(0.1))", "feedback(lowrank(1))", "int8(stochastic=true)"])
@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_with_a_codec_survivors_and_newcomers_go_on_alike(codec: str, link: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(3, stay_coded, str(stop), codec, folder=tmp_path, link=link) as run:
        run.lives[1].wait("stepped", step=4)
        run.lives[1].signal(signal.SIGKILL)
        others(run, 0, 2)
        again = run.start(1)
        again.wait("healed")
        again.wait("stepped", step=run.lives[0].events("stepped")[-1]["step"] + 3)
        stop.touch()
        ends = run.results()
    assert ends.pop(1) == KILLED
    alike(ends, [0, 1, 2])


@every_link
def test_two_may_come_at_once(link: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(5, stay, str(stop), folder=tmp_path, link=link) as run:
        for label in (3, 4):
            run.lives[label].wait("stepped")
            run.lives[label].signal(signal.SIGKILL)
        others(run, 0, 1, 2)
        newcomers = [run.start(label) for label in (3, 4)]
        for life in newcomers:
            life.wait("healed")
        stop.touch()
        ends = run.results()
    assert ends[3:5] == [KILLED, KILLED]
    alike(ends[:3] + ends[5:], [0, 1, 2, 3, 4])


@every_link
def test_a_newcomer_that_dies_while_it_is_healed_costs_nothing(link: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(3, stay, str(stop), "1 1 take_over", folder=tmp_path, link=link) as run:
        run.lives[1].wait("stepped")
        run.lives[1].signal(signal.SIGKILL)
        others(run, 0, 2)
        run.start(1)
        entered = run.lives[0].wait("view", labels=[0, 2, 1], number=3)
        run.lives[0].wait("view", labels=[0, 2], number=4)
        last = run.start(1)
        last.wait("healed")
        stop.touch()
        ends = run.results()
    assert entered["entry"] > 1
    assert [ends[1], ends[3]] == [KILLED, KILLED]
    alike([ends[0], ends[2], ends[4]], [0, 1, 2])


@every_link
def test_its_donor_may_die_too(link: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(4, stay, str(stop), "0 0 snapshot", folder=tmp_path, link=link) as run:
        run.lives[3].wait("stepped")
        run.lives[3].signal(signal.SIGKILL)
        run.lives[1].wait("view", labels=[0, 1, 2])
        newcomer = run.start(3)
        newcomer.wait("healed")
        run.lives[1].wait("view", labels=[1, 2, 3])
        stop.touch()
        ends = run.results()
    assert [ends[0], ends[3]] == [KILLED, KILLED]
    alike([ends[1], ends[2], ends[4]], [1, 2, 3])


@every_link
@pytest.mark.parametrize("rule", ["mean", "broadcast"])
def test_buffers_stay_alike_when_the_first_agent_dies(rule: str, link: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(3, stay, str(stop), "0 0 step", rule, folder=tmp_path, link=link) as run:
        run.lives[1].wait("view", labels=[1, 2])
        stop.touch()
        ends = run.results()
    assert ends[0] == KILLED
    alike(ends[1:], [1, 2])


def leaves_early(agent: Agent, life: int, stop: str) -> Any:
    """Agent 1 leaves, and its script goes on: it has a model to save."""
    if agent.label != 1:
        return stay(agent, life, stop)
    agent.leave()
    while not Path(stop).exists():
        time.sleep(0.002)
    return "went on"


@every_link
def test_one_that_leaves_may_go_on_with_its_script(link: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(3, leaves_early, str(stop), folder=tmp_path, link=link) as run:
        others(run, 0, 2)
        run.lives[2].wait("stepped", step=3)
        stop.touch()
        ends = run.results()
    assert ends.pop(1) == "went on"
    alike(ends, [0, 2])


# Stopped, and gone on


@pytest.mark.parametrize("who", ["both", "trainer"])
def test_a_stopped_agent_is_left_out_and_comes_back_with_the_others_state(who: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(3, stay, str(stop), folder=tmp_path) as run:
        life = run.lives[1]
        life.wait("stepped", step=3)
        life.signal(signal.SIGSTOP) if who == "both" else os.kill(life.child.pid, signal.SIGSTOP)
        others(run, 0, 2)
        life.signal(signal.SIGCONT)
        life.wait("healed")
        stop.touch()
        alike(run.results(), [0, 1, 2])


def test_in_shared_memory_a_stopped_agent_is_ended_as_it_could_write_there_later(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(3, stay, str(stop), folder=tmp_path, link="shm") as run:
        life = run.lives[1]
        life.wait("stepped", step=3)
        life.signal(signal.SIGSTOP)
        others(run, 0, 2)
        life.signal(signal.SIGCONT)
        stop.touch()
        ends = run.results()
    assert ends.pop(1) == KILLED
    alike(ends, [0, 2])


# The coordinator


@every_link
def test_the_coordinator_may_be_killed_and_an_agent_after_it(link: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(4, stay, str(stop), folder=tmp_path, link=link) as run:
        run.lives[0].wait("stepped", step=3)
        run.kill_coordinator()
        run.lives[3].wait("view", number=2, labels=[0, 1, 2, 3])
        run.lives[0].signal(signal.SIGKILL)
        run.lives[3].wait("view", labels=[1, 2, 3])
        stop.touch()
        ends = run.results()
    assert ends[0] == KILLED
    alike(ends[1:], [1, 2, 3])


# In words


def another_model(agent: Agent, life: int, stop: str) -> dict[str, Any]:
    return stay(agent, life, stop, width=17 if life else 16)


@every_link
def test_a_newcomer_with_another_model_is_refused_in_words_and_the_others_train_on(link: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(3, another_model, str(stop), folder=tmp_path, link=link) as run:
        run.lives[2].wait("stepped")
        run.lives[2].signal(signal.SIGKILL)
        others(run, 0, 1)
        stranger = run.start(2)
        stranger.wait("leave")
        stop.touch()
        ends = run.results()
    assert isinstance(ends[3], Refused) and "agent 2 is not let in" in str(ends[3])
    alike(ends[:2], [0, 1])


def test_a_majority_that_died_is_waited_for_by_name_and_training_goes_on_when_it_is_back(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    environ = {"STRETTO_STATE": str(tmp_path)}
    with running(4, stay, str(stop), folder=tmp_path, environ=environ) as run:
        run.lives[3].wait("stepped", step=3)
        for label in (0, 1, 2):
            run.lives[label].signal(signal.SIGKILL)
        assert "agents 0, 1, 2" in run.hears("training waits for")
        again = [run.start(label) for label in (0, 1, 2)]
        for life in again:
            life.wait("healed")
        stop.touch()
        ends = run.results()
    assert ends[:3] == [KILLED] * 3
    alike(ends[3:], [0, 1, 2, 3])


def test_with_min_agents_one_goes_on_without_a_majority(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    environ = {"STRETTO_MIN_AGENTS": "1"}
    with running(4, stay, str(stop), folder=tmp_path, environ=environ) as run:
        run.lives[3].wait("stepped", step=3)
        for label in (0, 1, 2):
            run.lives[label].signal(signal.SIGKILL)
        run.lives[3].wait("view", labels=[3])
        stop.touch()
        ends = run.results()
    assert ends[:3] == [KILLED] * 3
    alike(ends[3:], [3])
