"""The history of simulated servers: what breaks it is found, and what holds in every run is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stretto.core import Strategy
from stretto.errors import RunLost
from stretto.server.client import Client
from stretto.server.leases import Lease
from stretto.server.shard import Shard
from stretto.server.value import Server
from stretto.session.serving import Serving
from stretto.simulate import Broken, World, play
from stretto.simulate.faults import Fault
from stretto.simulate.history import History, State
from stretto.text import parse

BSP: Strategy = parse("bsp(slot=16)", "strategy")
SSP: Strategy = parse("ssp(1, slot=16)", "strategy")
ASP: Strategy = parse("asp(slot=16)", "strategy")
DEATH = [Fault(1.0, "kill", (1,))]


def trained(strategy: Strategy, seed: int = 3, agents: int = 3, faults: list[Fault] | None = None) -> World:
    return play(seed, strategy, agents, faults or [])


class Told:
    """A history of one slot of two elements, told by hand: agents 1 and 2 have read its beginning."""

    def __init__(self, staleness: int | None) -> None:
        self.history = History(Server(staleness))
        self.at = self.history.begun(0, 0, torch.zeros(2))
        for uid in (1, 2):
            self.read(uid, self.at)

    def read(self, uid: int, state: State) -> None:
        self.history.reading(uid, 0, state.version, state.values)

    def push(self, uid: int, clock: int, samples: tuple[int, int] = (0, 0)) -> State:
        """It is carried out, and leads somewhere new."""
        self.history.leases[uid, clock] = (Lease(clock, 0, (samples,), 1.0),)
        self.history.pushes(uid, clock, clock, 1.0)
        self.at = self.history.stepped(self.at, ((uid, clock),), 2, 0, self.at.values + uid)
        return self.at

    def check(self, samples: int = 0) -> None:
        for uid in (1, 2):
            self.read(uid, self.at)
        self.history.check(self.history.final((1, 2)), samples, 1)


def test_what_is_acknowledged_and_not_in_the_history_is_found() -> None:
    told = Told(None)
    told.push(1, 1)
    told.history.goes_on(2, (2, 1))
    with pytest.raises(Broken, match=r"pushes \[\(2, 1\)\] were acknowledged"):
        told.check()


def test_what_is_carried_out_twice_is_found() -> None:
    told = Told(None)
    for _ in range(2):
        told.push(1, 1)
    with pytest.raises(Broken, match="more than once"):
        told.check()


def test_a_read_of_what_is_lost_is_found() -> None:
    told = Told(None)
    told.read(1, told.push(1, 1))
    assert told.at.before is not None
    told.at = told.at.before
    told.push(2, 1)
    with pytest.raises(Broken, match="having read version 1"):
        told.check()


def test_a_read_that_goes_back_is_found() -> None:
    told = Told(None)
    beginning = told.at
    told.read(1, told.push(1, 1))
    with pytest.raises(Broken, match="reads version 0 of slot 0, having read version 1"):
        told.read(1, beginning)


def test_only_with_staleness_0_and_only_what_nobody_saw_whole_may_be_undone() -> None:
    told = Told(0)
    beginning = told.at
    told.read(1, told.push(1, 1))
    told.read(1, beginning)
    told.read(1, told.at)
    told.history.goes_on(1, (1, 1))
    with pytest.raises(Broken, match="having read version 1"):
        told.read(1, beginning)


def test_values_that_no_holder_had_are_found() -> None:
    with pytest.raises(Broken, match="that no holder has had"):
        Told(None).history.reading(1, 0, 0, torch.ones(2))


def test_holders_that_carry_out_the_same_have_the_same() -> None:
    told = Told(None)
    told.push(1, 1)
    assert told.at.before is not None
    with pytest.raises(Broken, match="different values"):
        told.history.stepped(told.at.before, ((1, 1),), 2, 0, torch.ones(2) / 3)


def test_an_answer_may_go_when_nobody_is_further_behind_than_the_bound() -> None:
    told = Told(2)
    told.history.answered(told.push(1, 3), (1, 3), {1: 3, 2: 1})
    assert told.history.lead == 2
    with pytest.raises(Broken, match="more than 2 behind"):
        told.history.answered(told.push(1, 4), (1, 4), {1: 4, 2: 1})


def test_an_answer_before_a_push_that_it_was_to_have_is_found() -> None:
    told = Told(1)
    told.history.answered(told.push(1, 2), (1, 2), {1: 2, 2: 1})
    told.push(2, 1)
    with pytest.raises(Broken, match=r"answered \(1, 2\) before it had carried out \[\(2, 1\)\]"):
        told.check()


def test_a_sample_that_no_push_has_is_found() -> None:
    told = Told(None)
    told.push(1, 1, (0, 2))
    told.check(samples=2)
    with pytest.raises(Broken, match="sample 2 was pushed 0 times"):
        told.check(samples=3)


# Whole runs


@pytest.mark.parametrize("agents", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_bsp_ends_with_the_bits_of_allreduce(seed: int, agents: int) -> None:
    ends = [
        world.record.weights(next(a.trainer.place for a in world.agents if a.trainer is not None and a.finished))
        for world in (trained(BSP, seed, agents), trained(parse("allreduce(topology=star)", "strategy"), seed, agents))
    ]
    assert torch.equal(*ends)


@pytest.mark.parametrize(("strategy", "bound"), [(SSP, 1), (parse("ssp(3, slot=16)", "strategy"), 3)])
def test_the_bound_is_reached_and_never_passed(strategy: Strategy, bound: int) -> None:
    leads = {history.lead for history in (trained(strategy, seed).history for seed in range(4)) if history is not None}
    assert max(leads) == bound


def test_without_a_bound_nobody_waits() -> None:
    history = trained(ASP).history
    assert history is not None and len(history.acknowledged) == len(history.pushed)


def broken_by(patch: pytest.MonkeyPatch, owner: type, name: str, other: Callable[..., Any], strategy: Strategy) -> str:
    """What is found in the first of some runs in which something is found."""
    patch.setattr(owner, name, other)
    for seed in range(12):
        try:
            trained(strategy, seed, 4, DEATH)
        except Broken as e:
            return str(e)
    return ""


def test_a_server_that_lets_everybody_go_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "more than 1 behind" in broken_by(monkeypatch, Shard, "may", lambda *_: True, SSP)


def test_a_server_that_carries_out_repeats_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Shard.push

    def push(self: Shard, push: Any, update: Any) -> bool:
        self.clocks[push.uid] = min(self.clocks.get(push.uid, 0), push.clock - 1)
        return real(self, push, update)

    assert "carried out more than once" in broken_by(monkeypatch, Shard, "push", push, ASP)


def test_an_agent_that_pushes_again_what_is_answered_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Client.enter

    def enter(self: Client, ask: Any) -> None:
        due = self._values
        if due is not None:
            due.open |= set(due.requests)
        real(self, ask)

    assert not broken_by(monkeypatch, Client, "enter", enter, ASP)


def test_slots_whose_holders_all_die_are_an_honest_end() -> None:
    struck = [Fault(1.0, "kill", (0,)), Fault(1.0, "kill", (1,)), Fault(1.0, "kill", (2,))]
    outcomes = {play(seed, ASP, 7, struck).outcome for seed in range(8)}
    assert outcomes == {"ended", "slots lost"}


def test_slots_that_are_lost_by_one_death_are_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(self: Serving, *_: Any) -> None:
        raise RunLost("slot 0 is gone")

    assert "somebody is there who had one" in broken_by(monkeypatch, Serving, "_ask", ask, ASP)


def test_who_has_all_that_it_needs_ends_though_the_others_have_left_with_their_slots() -> None:
    assert play(17, SSP, 3, ()).outcome == "ended"
