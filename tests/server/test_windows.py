"""Agents train windows by themselves and push what they drifted by: every sample counts once, and all end alike."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lives import BATCH, KILLED, SAMPLES, data, every_link, kill_both, model
from processes import agents, running
from pushers import OPTIMIZERS, train
from slots import drawn
from test_deaths import stay
from torch.nn import functional
from trainings import weights

from stretto.agent import Agent
from stretto.codecs import Identity
from stretto.core import Cell, Like
from stretto.errors import UsageError
from stretto.outers import DelayedNesterov, Mean, Nesterov
from stretto.server import Piece, Push, Rule, Server, Shard, Slot
from stretto.server.client import Client
from stretto.server.messages import FENCE, GRANTED, PAUSE, PUSH, numbers
from stretto.state import packed, unpack
from stretto.text import parse

network = pytest.mark.network
ALL_ONCE = Counter(list(range(SAMPLES)) * 2)


def trained(lives: list[dict[str, Any]]) -> Counter[int]:
    return Counter(sample for life in lives for batch in life["drawn"] for sample in batch)


# One slot


def shard(outer: Any, agents: int, staleness: int | None = None) -> Shard:
    slot = Slot(0, 0, 0, 20, "float32", (Piece(0, 0, 20),))
    found = Shard(slot, Server(staleness), Rule.landing(outer), torch.zeros(20))
    found.enter(tuple(range(agents)))
    return found


def windows(number: float) -> torch.Tensor:
    return torch.tensor([number], dtype=torch.float64)


@pytest.mark.parametrize("agents", [1, 2, 3])
def test_the_drifts_of_all_agents_are_one_outer_step_with_their_mean(agents: int) -> None:
    held, outer, at, remembered = shard(DelayedNesterov(), agents), Nesterov(), torch.zeros(20), None
    for clock in range(1, 5):
        drifts = [drawn(10 * clock + uid, 20) for uid in range(agents)]
        for uid, drift in enumerate(drifts):
            held.push(Push(uid, clock, held.version, 1.0, windows(1)), drift)
        step, remembered = outer.update(torch.stack(drifts).mean(0), remembered)
        at = at - step
        torch.testing.assert_close(held.values, at)


def test_a_part_of_a_window_moves_by_all_that_it_found_and_ends_no_round_early() -> None:
    """Half a window and the other half are one, when nobody comes between."""
    halves, whole = shard(DelayedNesterov(), 2), shard(DelayedNesterov(), 2)
    for clock in range(1, 4):
        first, second, other = (drawn(10 * clock + i, 20) for i in range(3))
        halves.push(Push(0, 2 * clock - 1, halves.version, 1.0, windows(0.5)), first)
        halves.push(Push(0, 2 * clock, halves.version, 1.0, windows(0.5)), second)
        whole.push(Push(0, clock, whole.version, 1.0, windows(1)), first + second)
        for held in (halves, whole):
            held.push(Push(1, clock, held.version, 1.0, windows(1)), other)
        torch.testing.assert_close(halves.values, whole.values)


@pytest.mark.parametrize("outer", [Mean(), Nesterov(), DelayedNesterov()], ids=str)
def test_who_is_given_a_slot_goes_on_as_its_holder_to_the_bit(outer: Any) -> None:
    held = shard(outer, 3)
    for clock in range(1, 3):
        for uid in range(3 if clock == 1 else 1):
            held.push(Push(uid, clock, held.version, 1.0, windows(1)), drawn(clock * 10 + uid, 20))
    other = shard(outer, 3)
    other.load(unpack(packed(held.state())))
    held.move()
    for one in (held, other):
        for uid in (1, 2):
            one.push(Push(uid, 2, one.version, 1.0, windows(0.3)), drawn(uid, 20))
    assert torch.equal(held.values, other.values)


@pytest.mark.parametrize("outer", [Mean(), Nesterov(), DelayedNesterov()], ids=str)
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_step_of_all_is_taken_back_to_the_bit(outer: Any, before: int) -> None:
    held, other = shard(outer, 2, 0), shard(outer, 2, 0)
    for clock in range(1, before + 2):
        for one in (held, other):
            for uid in range(2):
                one.push(Push(uid, clock, one.version, 1.0, windows(1)), drawn(clock * 10 + uid, 20))
            if clock == before + 1 and one is held:
                held.settle(before)
                for uid in range(2):
                    held.push(Push(uid, clock, held.version, 1.0, windows(1)), drawn(clock * 10 + uid, 20))
    assert torch.equal(held.values, other.values)


@pytest.mark.parametrize("number", [0.0, -1.0, float("nan"), float("inf")])
def test_a_drift_of_no_windows_is_refused(number: float) -> None:
    with pytest.raises(UsageError, match="must be of more than none"):
        shard(DelayedNesterov(), 1).push(Push(0, 1, 0, 1.0, windows(number)), torch.zeros(20))


def test_a_bound_of_none_at_all_is_diloco() -> None:
    with pytest.raises(UsageError, match=r"use diloco\(8\), or staleness=4"):
        parse("delayed_nesterov(8, staleness=0)", "strategy")


def test_who_pushes_what_was_left_and_stops_is_waited_for_by_nobody() -> None:
    """Told to stop it counts no more; by pushing it would, so it says again that it does not."""
    slot = Slot(0, 0, 0, 20, "float32", (Piece(0, 0, 20),))
    asked: list[tuple[int, float]] = []
    client = Client(7, [slot], Server(1), Identity(), [Cell(Like((20,), torch.float32))], Own(), ended, ended)
    client.enter(lambda number, request, body: asked.append((request.kind, request.weight)))
    for number, about in enumerate((GRANTED, FENCE)):
        client.lease(number, [2.0, 0.0, 1.0], wish=False, fences=0)
        client.leased((numbers(about, 0),))
    client.push(2, 1.0, -1, windows(0.5))
    found = [(kind, weight) for kind, weight in asked if kind in (PUSH, PAUSE)]
    assert found[-3:] == [(PAUSE, 0.0), (PUSH, 1.0), (PAUSE, 0.0)]


class Own:
    """A :class:`stretto.server.client.Memory`."""

    def part(self, slot: Slot) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(20),)

    def values(self, slot: Slot) -> torch.Tensor:
        return torch.zeros(20)


def ended(*_: object) -> None: ...


# Real agents


@network
@pytest.mark.parametrize(
    ("strategy", "size", "link", "kind"),
    [
        ("delayed_nesterov(1)", 2, "tcp", "sgd"),
        ("delayed_nesterov(3)", 1, "tcp", "adamw"),
        ("delayed_nesterov(3, slot=1024)", 4, "shm", "momentum"),
        ("delayed_nesterov(2, staleness=1)", 3, "tcp", "adam"),
        ("delayed_nesterov(2, codec=feedback(topk(0.2)+int8), pull=int8)", 3, "tcp", "adamw"),
        ("delayed_nesterov(100, replicas=1)", 3, "shm", "sgd"),
    ],
)
def test_every_sample_is_trained_once_and_all_end_alike(strategy: str, size: int, link: str, kind: str) -> None:
    lives = agents(size, train, strategy, kind, link=link)
    assert trained(lives) == ALL_ONCE
    assert all(f"{SAMPLES} samples, each exactly once in each of 2 epochs" in life["proof"] for life in lives)
    assert len({life["digest"] for life in lives}) == 1


def alone(agent: Agent, every: int, kind: str) -> Any:
    """One agent that lands its windows with a plain mean of rate 1: as if there were no servers."""
    net = model()
    text = f"delayed_nesterov({every}, 1.0, 0.0)" if every else "allreduce"
    net, optimizer = agent.prepare(net, OPTIMIZERS[kind](net.parameters()), strategy=text)
    for x, y, _ in agent.shard(data(), BATCH, epochs=2, seed=3):
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(net)


@network
@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_one_agent_s_optimizer_goes_on_from_window_to_window(kind: str) -> None:
    (landed,), (plain,) = (agents(1, alone, every, kind) for every in (3, 0))
    for one, other in zip(landed, plain, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-6, atol=1e-9)


def windowed(agent: Agent, life: int, dies: str) -> dict[str, Any]:
    """Two epochs by windows of three. Agent 0 dies in its first life: at ``"STEP MOMENT"``, or leaves."""
    net = model()
    net, optimizer = agent.prepare(net, OPTIMIZERS["adam"](net.parameters()), strategy="delayed_nesterov(3, slot=1024)")
    shard = agent.shard(data(), BATCH, epochs=2, seed=3)
    first = agent.label == 0 and life == 0
    for x, y, which in shard:
        agent.trace.event("drawn", step=shard.drawn, samples=which.tolist())
        functional.cross_entropy(net(x), y).backward()
        if first and dies == f"{shard.drawn} drawn":
            kill_both()
        optimizer.step()
        optimizer.zero_grad()
        if first and dies == f"{shard.drawn} stepped":
            kill_both()
        if first and dies == f"{shard.drawn} leaves":
            agent.leave()
            return {}
    return {"digest": agent.digest(), "proof": shard.proof()}


@network
@pytest.mark.parametrize(
    ("dies", "lost"),
    [("3 drawn", [1, 2, 3]), ("2 stepped", [1, 2]), ("3 stepped", []), ("4 stepped", [4]), ("4 leaves", [4])],
)
def test_a_window_that_was_not_pushed_is_trained_by_others_and_what_was_is_not(
    dies: str, lost: list[int], tmp_path: Path
) -> None:
    with running(3, windowed, dies, folder=tmp_path) as run:
        ends = run.results()
        found = Counter(s for life in run.lives for event in life.events("drawn") for s in event["samples"])
        gone = [event["samples"] for event in run.lives[0].events("drawn") if event["step"] in lost]
    assert found - ALL_ONCE == Counter(s for batch in gone for s in batch)
    assert ends.pop(0) == ({} if "leaves" in dies else KILLED)
    assert ends[0] == ends[1] and f"{SAMPLES} samples, each exactly once in each of 2 epochs" in ends[0]["proof"]


@network
@every_link
def test_one_after_the_other_dies_and_comes_again_and_trains_on(link: str, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with running(4, stay, "delayed_nesterov(3, slot=1024)", str(stop), folder=tmp_path, link=link) as run:
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


# Checkpoints


@network
@pytest.mark.parametrize(("before", "after"), [(3, 3), (3, 2), (1, 3)])
def test_a_run_goes_on_where_all_had_stopped(before: int, after: int, tmp_path: Path) -> None:
    place = str(tmp_path / "saved")
    first = agents(before, train, "delayed_nesterov(3, slot=1024)", "adam", 1, place)
    lives = agents(after, train, "delayed_nesterov(3, slot=1024)", "adam", 2, place)
    assert all(life["resumed"] for life in lives)
    assert {life["begun"]["digest"] for life in lives} == {life["digest"] for life in first}
    assert len({life["digest"] for life in lives}) == 1
    assert trained(first) == trained(lives) == Counter(range(SAMPLES))
    assert all(f"{SAMPLES} samples, each exactly once in each of 2 epochs" in life["proof"] for life in lives)


@network
@pytest.mark.parametrize(("before", "after"), [(3, 3), (2, 3), (3, 1)])
def test_who_stops_in_a_window_has_pushed_it(before: int, after: int, tmp_path: Path) -> None:
    """Each stops after its second batch of three."""
    place = str(tmp_path / "saved")
    first = agents(before, train, "delayed_nesterov(3, slot=1024)", "adam", 2, place, 2)
    lives = agents(after, train, "delayed_nesterov(3, slot=1024)", "adam", 2, place)
    assert all(life["resumed"] for life in lives)
    assert len({life["begun"]["digest"] for life in lives}) == len({life["digest"] for life in lives}) == 1
    assert trained(first) + trained(lives) == ALL_ONCE
    assert all(f"{SAMPLES} samples, each exactly once in each of 2 epochs" in life["proof"] for life in lives)
