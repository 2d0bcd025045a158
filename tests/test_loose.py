"""Agents that train by themselves and exchange drifts: identities, deaths, newcomers, checkpoints."""

from __future__ import annotations

import itertools
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lives import BATCH, KILLED, SAMPLES, alike, close, data, every_link, further, kill_both, model, others, stay
from processes import Run, agents, running
from torch.nn import functional
from trainings import weights

from stretto.agent import Agent
from stretto.core import Cell, Codec, Link
from stretto.errors import DataError
from stretto.exchanges import Pairs
from stretto.launch.join import join

pytestmark = pytest.mark.network


def train(
    agent: Agent,
    strategy: str,
    momentum: float = 0.0,
    place: str | None = None,
) -> dict[str, Any]:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    net, optimizer = agent.prepare(net, optimizer, strategy=strategy)
    shard = agent.shard(data(), BATCH, epochs=2, seed=3)
    resumed = agent.checkpoint(place, every=0.0) if place else False
    for x, y, _ in shard:
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        "digest": agent.digest(),
        "weights": weights(net),
        "proof": shard.proof(),
        "steps": agent.steps,
        "resumed": resumed,
    }


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
@pytest.mark.parametrize(
    "strategy",
    [
        "local_sgd(4)",
        "diloco(5, codec=int4)",
        "post_local_sgd(3, 4)",
        "streaming_diloco(6, 3, 2, codec=int8)",
        "eager_diloco(3)",
        "hierarchical_local_sgd(1, 4)",
        "gossip_sgd(complete, settle=4)",
        "push_sum(random_push, settle=4)",
        "async_gossip(settle=4)",
        "easgd(3)",
        "async_easgd(2, settle=4)",
        "decoupled_diloco(2, settle=4)",
        "noloco(3, settle=4)",
    ],
)
def test_all_end_alike_and_every_sample_is_trained_once(strategy: str, link: str) -> None:
    lives = agents(3, train, strategy, 0.9, link=link)
    assert len({life["digest"] for life in lives}) == 1
    assert all("exactly once" in life["proof"] for life in lives)


# Checkpoints


@pytest.mark.parametrize("size", [3, 1])
@pytest.mark.parametrize(
    ("strategy", "steps"),
    [
        ("local_sgd(4, topology=ring)", 8),
        ("local_sgd(4, topology=ring)", 7),
        ("local_sgd(1, topology=ring)", 3),
        ("diloco(3, topology=ring)", 7),
        ("diloco(3, topology=ring, codec=feedback(topk(0.1)))", 6),
        ("post_local_sgd(3, 4, topology=ring)", 7),
        ("streaming_diloco(4, 2, 2, topology=ring)", 7),
        ("streaming_diloco(6, 2, 0, topology=ring, codec=int8)", 4),
        ("eager_diloco(3, topology=ring)", 7),
        ("easgd(3, topology=ring)", 7),
        ("gossip_sgd(ring, settle=4)", 5),
        ("push_sum(random_push, settle=4)", 7),
        ("noloco(2, settle=4)", 5),
    ],
)
def test_what_goes_on_from_a_checkpoint_goes_on_bit_for_bit(
    strategy: str, steps: int, size: int, tmp_path: Path
) -> None:
    """Between two agreements, too, or with one under way: all that is an agent's own is in it."""
    place = str(tmp_path / "saved")
    agents(size, partial(end_early, failed=False), strategy, place, 1000.0, steps)
    lives = agents(size, train, strategy, 0.9, place)
    whole = agents(size, train, strategy, 0.9)
    assert all(life.pop("resumed") for life in lives) and not any(life.pop("resumed") for life in whole)
    assert lives == whole


@pytest.mark.parametrize(
    "strategy", ["async_gossip(settle=4)", "async_easgd(2, settle=4)", "decoupled_diloco(2, settle=4)"]
)
def test_where_agents_answer_each_other_all_agree_before_they_go_on_from_a_checkpoint(
    strategy: str, tmp_path: Path
) -> None:
    """What they remember of each other was saved while some were ahead: it fits no more."""
    place = str(tmp_path / "saved")
    agents(3, partial(end_early, failed=False), strategy, place, 1000.0, 7)
    lives = agents(3, train, strategy, 0.9, place)
    assert all(life["resumed"] and "exactly once" in life["proof"] for life in lives)
    assert len({life["digest"] for life in lives}) == 1


def end_early(agent: Agent, strategy: str, place: str, every: float, steps: int, *, failed: bool) -> None:
    """So many batches; who has ``failed`` saves nothing when it goes."""
    net = model()
    net, optimizer = agent.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), strategy=strategy)
    shard = agent.shard(data(), BATCH, epochs=2, seed=3)
    agent.checkpoint(place, every)
    for x, y, _ in itertools.islice(shard, steps):
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    if failed:
        assert agent._keeping._saver is not None
        agent._keeping._saver.close()  # what is under way is written
        raise RuntimeError("the run is over")


@pytest.mark.parametrize("size", [3, 1])
@pytest.mark.parametrize("strategy", ["local_sgd(1)", "local_sgd(4)"])
def test_a_run_that_failed_within_a_window_goes_on_from_an_exchange_before_it(
    strategy: str, size: int, tmp_path: Path
) -> None:
    place = str(tmp_path / "saved")
    agents(size, partial(end_early, failed=True), strategy, place, 0.0, 7, keep_errors=True)
    lives = agents(size, train, strategy, 0.9, place)
    whole = agents(size, train, strategy, 0.9)
    assert all(life.pop("resumed") for life in lives) and not any(life.pop("resumed") for life in whole)
    assert lives == whole


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3)])
@pytest.mark.parametrize("strategy", ["local_sgd(4)", "streaming_diloco(4, 2, 2)", "gossip_sgd(settle=4)"])
def test_another_number_of_agents_goes_on_from_where_all_agreed_last(
    strategy: str, before: int, after: int, tmp_path: Path
) -> None:
    """What had been trained since then is trained again."""
    place = str(tmp_path / "saved")
    agents(before, partial(end_early, failed=False), strategy, place, 1000.0, 7)
    lives = agents(after, train, strategy, 0.9, place)
    assert all(life["resumed"] and "exactly once in each of 2 epochs" in life["proof"] for life in lives)
    assert len({life["digest"] for life in lives}) == 1


@pytest.mark.parametrize("strategy", ["local_sgd(4)", "gossip_sgd(settle=4)", "delayed"])
def test_several_agents_go_on_from_what_one_alone_has_saved(strategy: str, tmp_path: Path) -> None:
    """It exchanged nothing, so nobody remembered anything of that."""
    place = str(tmp_path / "saved")
    with join(environ={}) as alone:
        end_early(alone, strategy, place, 1000.0, 7, failed=False)
    lives = agents(3, train, strategy, 0.9, place)
    assert all(life["resumed"] and "exactly once in each of 2 epochs" in life["proof"] for life in lives)
    assert len({life["digest"] for life in lives}) == 1


# Deaths


def finish(agent: Agent, life: int, strategy: str, dies: int) -> dict[str, Any]:
    """Two epochs. Agent 1 dies, in its first life, after batch ``dies``."""
    net = model()
    net, optimizer = agent.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), strategy=strategy)
    shard = agent.shard(data(), BATCH, epochs=2, seed=3)
    for x, y, numbers in shard:
        agent.trace.event("drawn", at=shard.drawn, samples=numbers.tolist())
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if (agent.label, life, shard.drawn) == (1, 0, dies):
            kill_both()
    return {"digest": agent.digest(), "proof": shard.proof(), "labels": list(agent.epoch.labels)}


def drawn(run: Run, *labels: int, since: int = 1) -> Counter[int]:
    """How often they drew every sample, from batch ``since`` on."""
    events = [event for label in labels for event in run.lives[label].events("drawn")]
    return Counter(sample for event in events if event["at"] >= since for sample in event["samples"])


@every_link
@pytest.mark.parametrize("strategy", ["local_sgd(5)", "diloco(5)", "post_local_sgd(5, 5)"])
@pytest.mark.parametrize("dies", [7, 11])
def test_a_death_costs_what_the_dead_had_trained_since_the_last_exchange(
    strategy: str, dies: int, link: str, tmp_path: Path
) -> None:
    """Others train just that again, and nothing else; also where it died in the last window, with nothing left."""
    with running(3, finish, strategy, dies, folder=tmp_path, link=link) as run:
        ends = run.results()
        lost = drawn(run, 1, since=dies - (dies - 1) % 5)
        assert lost and drawn(run, 0, 1, 2) == Counter(list(range(SAMPLES)) * 2) + lost
    assert ends.pop(1) == KILLED and ends[0] == ends[1]
    assert f"{SAMPLES} samples, each exactly once in each of 2 epochs" in ends[0]["proof"]
    assert ends[0]["labels"] == [0, 2]


# They come again


def stay_loose(agent: Agent, life: int, stop: str, strategy: str) -> dict[str, Any]:
    """As all others stay; but momentum and scale are each agent's own."""
    end = stay(agent, life, stop, strategy=strategy)
    del end["momentum"], end["scale"]
    return end


every_strategy = pytest.mark.parametrize(
    "strategy",
    [
        "local_sgd(5)",
        "diloco(5, codec=feedback(topk(0.1)))",
        "streaming_diloco(6, 3, 2)",
        "eager_diloco(5)",
        "easgd(5)",
        "gossip_sgd(settle=5)",
        "async_gossip(settle=5)",
    ],
)


@every_strategy
def test_one_started_again_is_given_what_all_share_and_enters_at_an_exchange(strategy: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(3, stay_loose, str(stop), strategy, folder=tmp_path) as run:
        run.lives[1].wait("stepped", drawn=12)
        run.lives[1].signal(signal.SIGKILL)
        others(run, 0, 2)
        run.start(1).wait("healed")
        further(run, 3, 7)
        stop.touch()
        ends = run.results()
    assert ends.pop(1) == KILLED
    alike(ends, [0, 1, 2])


@every_strategy
def test_one_that_was_stopped_comes_back_with_what_all_share(strategy: str, tmp_path: Path) -> None:
    """What it trained by itself since the last exchange is trained by others."""
    stop = tmp_path / "stop"
    with running(3, stay_loose, str(stop), strategy, folder=tmp_path) as run:
        run.lives[1].wait("stepped", drawn=12)
        run.lives[1].signal(signal.SIGSTOP)
        others(run, 0, 2)
        run.lives[1].signal(signal.SIGCONT)
        run.lives[1].wait("healed")
        further(run, 1, 7)
        stop.touch()
        alike(run.results(), [0, 1, 2])


@every_link
def test_the_coordinator_may_die_within_a_window_and_an_agent_after_it(link: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(4, stay_loose, str(stop), "diloco(5)", folder=tmp_path, link=link) as run:
        run.lives[0].wait("stepped", drawn=7)
        run.kill_coordinator()
        run.lives[3].wait("view", number=2, labels=[0, 1, 2, 3])
        run.lives[0].signal(signal.SIGKILL)
        run.lives[3].wait("view", labels=[1, 2, 3])
        further(run, 3, 7)
        stop.touch()
        ends = run.results()
    assert ends[0] == KILLED
    alike(ends[1:], [1, 2, 3])


# Without a shard


def stay_undealt(agent: Agent, life: int, stop: str, strategy: str) -> dict[str, Any]:
    """Train on samples of the script's own choice until the file ``stop`` is there."""
    net = model()
    net, optimizer = agent.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1), strategy=strategy)
    x, y, _ = data()
    for step in itertools.count(1):
        chosen = torch.randint(SAMPLES, (BATCH,))
        functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
        agent.trace.event("stepped", drawn=step)
        if agent.mean(float(Path(stop).exists())) > 0:
            break
        time.sleep(0.002)
    agent.synchronise()
    return {"digest": agent.digest(), "steps": agent.steps, "labels": sorted(agent.epoch.labels)}


@pytest.mark.parametrize("strategy", ["local_sgd(5)", "gossip_sgd(settle=5)"])
def test_a_newcomer_without_a_shard_trains_on_with_the_others(strategy: str, tmp_path: Path) -> None:
    """It has no batches to count by: it takes the others' count of steps."""
    stop = tmp_path / "stop"
    with running(3, stay_undealt, str(stop), strategy, folder=tmp_path) as run:
        run.lives[1].wait("stepped", drawn=12)
        run.lives[1].signal(signal.SIGKILL)
        others(run, 0, 2)
        run.start(1).wait("healed")
        further(run, 3, 12)
        stop.touch()
        ends = run.results()
        together = [e for e in run.lives[3].events("commit") if sorted(e["contributors"]) == [0, 1, 2]]
    assert ends.pop(1) == KILLED
    assert all(end == ends[0] for end in ends) and ends[0]["labels"] == [0, 1, 2], ends
    assert len(together) > 1  # two windows, at least


# Who cannot answer


@every_link
def test_who_cannot_answer_any_more_fails_in_words_and_the_others_go_on(
    link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its courier lives, and says at the trainer's next order what is wrong."""
    answer = Pairs.serve

    async def serve(mixing: Pairs, link: Link, codec: Codec, cell: Cell) -> None:
        if (link.rank, link.size) == (1, 3):
            raise DataError("agent 2 asked for what is not there")
        await answer(mixing, link, codec, cell)

    monkeypatch.setattr(Pairs, "serve", serve)
    first, failed, last = agents(3, train, "async_gossip(settle=4)", link=link, keep_errors=True)
    assert isinstance(failed, DataError) and str(failed) == "agent 2 asked for what is not there"
    assert first == last and "exactly once" in first["proof"]
