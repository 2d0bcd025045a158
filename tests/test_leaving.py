"""When somebody goes, however it goes, the others go on alike."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from nets import every_link, numbers
from processes import Died, agents
from torch import nn

from stretto.agent import Agent
from stretto.errors import PeerLost

pytestmark = pytest.mark.network


def leave(agent: Agent) -> None:
    agent.leave()


def raise_(agent: Agent) -> None:
    raise ValueError("an agent's script is wrong")


def kill_trainer(agent: Agent) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_courier(agent: Agent) -> None:
    assert agent._courier is not None
    os.kill(agent._courier._pid, signal.SIGKILL)


GOES = {"leaves": leave, "raises": raise_, "is killed": kill_trainer, "its courier is killed": kill_courier}


def stop_at(agent: Agent, label: int, step: int, how: str) -> tuple[str, str, list[int]]:
    """Train; at ``step`` agent ``label`` goes, and if it still can it goes on."""
    net = nn.Linear(300, 300)
    net, optimizer = agent.prepare(net, torch.optim.SGD(net.parameters(), 0.01))
    for i in range(40):
        if (agent.label, i) == (label, step):
            GOES[how](agent)
            if how == "leaves":
                return "left", "", []
        net(numbers(2, 300, seed=i)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return "finished", agent.digest(), list(agent.epoch.labels)


@every_link
@pytest.mark.parametrize("how", GOES)
@pytest.mark.parametrize("label", [0, 1])
def test_when_an_agent_goes_the_others_go_on_alike_without_it(label: int, how: str, link: str) -> None:
    ends = agents(3, stop_at, label, 5, how, link=link, keep_errors=True, deadline=20.0)
    gone = ends.pop(label)
    if link == "c10d":
        assert all(isinstance(e, PeerLost) and "link c10d loses all with one" in str(e) for e in ends), ends
    else:
        assert ends[0] == ends[1], ends
        assert ends[0][0] == "finished" and ends[0][2] == sorted({0, 1, 2} - {label})
    match how:
        case "leaves":
            assert gone[0] == "left"
        case "raises":
            assert "script is wrong" in str(gone)
        case "is killed":
            assert gone == Died(signal=signal.SIGKILL)
        case _:
            assert isinstance(gone, Exception) and "courier" in str(gone)


@every_link
def test_agents_go_on_without_one_that_left_before_they_ever_met(link: str) -> None:
    def once(agent: Agent) -> tuple[str, float]:
        return ("left", 0.0) if agent.label == 0 else ("went on", agent.mean(float(agent.label)))

    ends = agents(3, once, link=link, keep_errors=True, deadline=20.0)
    assert ends[0] == ["left", 0.0]
    if link == "c10d":
        assert all(isinstance(e, PeerLost) for e in ends[1:]), ends
    else:
        assert ends[1:] == [["went on", 1.5]] * 2


@every_link
def test_agents_that_leave_one_after_the_other_all_end(link: str) -> None:
    """The last exchange is over for all, and they take their time to go."""

    def once(agent: Agent) -> float:
        mean = agent.mean(float(agent.rank))
        import time

        time.sleep(0.1 * agent.rank)
        return mean

    assert agents(4, once, link=link) == [1.5] * 4
