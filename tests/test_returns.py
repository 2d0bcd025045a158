"""Agents are stopped, die and come again, as real processes, and are given the state of the others."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from lives import KILLED, alike, every_link, model, others, stay
from processes import running
from trainings import weights

from stretto.agent import Agent
from stretto.errors import Refused

pytestmark = pytest.mark.network


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
