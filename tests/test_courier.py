"""The courier: what the trainer orders is done, what cannot be is said, and it never outlives its trainer."""

from __future__ import annotations

import os
import signal
import threading

import psutil
import pytest
import torch
from processes import agents

from stretto.agent import Agent
from stretto.courier import Courier
from stretto.courier.trainer import SCRATCH
from stretto.errors import Disagreement, UsageError

pytestmark = pytest.mark.network
every_link = pytest.mark.parametrize("link", ["tcp", "shm", "c10d"])


def courier_of(agent: Agent) -> Courier:
    assert agent._courier is not None
    return agent._courier


def exchanges_out_of_order(agent: Agent) -> list[float]:
    """Twenty buckets of a round are begun, and awaited from the last to the first."""
    courier = courier_of(agent)
    courier.use(0, "allreduce(topology=tree)")
    memory = courier.allocate(20 * 4000).view(torch.float32).view(20, 1000)
    waits = []
    for i, x in enumerate(memory):
        x.fill_(i * (agent.rank + 1))
        waits.append(courier.mean(0, x, x, bucket=i, of=20))
    for wait in reversed(waits):
        wait()
    return [x.unique().item() for x in memory]


@every_link
def test_buckets_that_are_begun_together_may_be_awaited_in_any_order(link: str) -> None:
    assert agents(3, exchanges_out_of_order, link=link) == [[2.0 * i for i in range(20)]] * 3


def lies_elsewhere(agent: Agent) -> None:
    x = torch.zeros(10)
    courier_of(agent).mean(7, x, x)


def test_a_tensor_outside_the_couriers_memory_is_refused_before_anything_is_sent() -> None:
    ends = agents(2, lies_elsewhere, keep_errors=True)
    assert all(isinstance(e, UsageError) and "allocate" in str(e) for e in ends)


def agrees_on_much(agent: Agent, differs: bool) -> None:
    text = "x" * (SCRATCH + 1000) + ("odd" if differs and agent.rank == 1 else "all")
    courier_of(agent).agree("a long text", text)


def test_texts_longer_than_the_scratch_memory_are_compared_to_their_ends() -> None:
    agents(2, agrees_on_much, False)
    ends = agents(2, agrees_on_much, True, keep_errors=True)
    assert all(isinstance(e, Disagreement) and "a long text" in str(e) for e in ends)


def counts(agent: Agent) -> tuple[int, int, int]:
    before = agent.report()
    agent.mean(0.0)  # nobody sends before all have looked
    courier = courier_of(agent)
    x = courier.allocate(400_000).view(torch.float32)
    courier.use(0, "allreduce(topology=ring)")
    courier.mean(0, x, x)()
    after = agent.report()
    agent.mean(0.0)
    return after.bytes_sent - before.bytes_sent, after.bytes_received - before.bytes_received, after.connections


@every_link
def test_what_was_sent_is_counted(link: str) -> None:
    """A ring of two sends half of the tensor each way, twice."""
    for sent, received, connections in agents(2, counts, link=link):
        assert 400_000 < sent < 402_000 and 400_000 < received < 402_000
        assert connections == 1


def is_interrupted(agent: Agent) -> float:
    """Ctrl-C reaches the whole group; the trainer decides what it means, the courier goes on."""
    os.kill(courier_of(agent)._pid, signal.SIGINT)
    return agent.mean(float(agent.rank))


def test_an_interrupt_does_not_end_a_courier() -> None:
    assert agents(2, is_interrupted) == [0.5, 0.5]


def leaves_twice(agent: Agent) -> tuple[bool, int]:
    agent.mean(0.0)
    pid = courier_of(agent)._pid
    agent.leave()
    agent.leave()
    return psutil.pid_exists(pid), len(psutil.Process().children())


@every_link
def test_after_leaving_no_courier_is_there_and_leaving_again_is_nothing(link: str) -> None:
    assert agents(2, leaves_twice, link=link) == [[False, 0]] * 2


def holds_the_lock(agent: Agent) -> float:
    """A thread of the trainer that runs Python all the while does not keep the courier from answering."""
    stop = False

    def busy() -> None:
        while not stop:
            sum(range(1000))

    thread = threading.Thread(target=busy)
    thread.start()
    mean = 0.0
    for _ in range(5):
        mean = agent.mean(float(agent.rank))
    stop = True
    thread.join()
    return mean


def test_exchanges_go_on_beside_a_busy_trainer() -> None:
    assert agents(2, holds_the_lock) == [0.5, 0.5]
