"""Servers in simulated runs: they change nothing that is trained, die like agents, and every promise is kept."""

from __future__ import annotations

import pytest

import stretto.strategies  # noqa: F401  registers their names
from stretto.core import FIRST_SERVER
from stretto.simulate import Fault, Setting, World, examine, play, schedule
from stretto.simulate.faults import Kind
from stretto.text import parse

STRATEGIES = ["allreduce(topology=ring)", "local_sgd(4)"]
every_strategy = pytest.mark.parametrize("text", STRATEGIES)


def ends(world: World) -> set[tuple[float, ...]]:
    """The weights with which agents ended."""
    return {tuple(a.trainer.weights.tolist()) for a in world.agents if a.finished and a.trainer is not None}


@every_strategy
def test_servers_change_nothing_that_is_trained(text: str) -> None:
    strategy = parse(text, "strategy")
    plain = play(3, strategy, 3, ())
    served = World(3, strategy, 3, (), task=plain.job, servers=2)
    served.run()
    assert (served.outcome, served.steps) == ("ended", plain.steps)
    assert len(ends(plain)) == 1 and ends(plain) == ends(served)


@every_strategy
def test_a_storm_with_servers_keeps_all_promises(text: str) -> None:
    tally = examine(range(30), parse(text, "strategy"), Setting("storm", servers=2))
    assert tally.breaks == ()
    assert tally.outcomes["ended"] > 20 and tally.steps > 100


def test_servers_are_struck_like_agents() -> None:
    faults = [fault for seed in range(100) for fault in schedule(seed, Setting("storm", servers=2))[1]]
    struck = {fault.kind for fault in faults if max(fault.who) >= FIRST_SERVER}
    assert struck == {"kill", "fall", "power", "restart", "cut", "stop", "snap", "sever", "suspect"}
    assert str(Fault(1.0, "kill", (FIRST_SERVER + 1,))).startswith("  1.000 kill s1: dies")


def test_without_servers_the_same_seeds_are_the_same_storms() -> None:
    assert max(max(fault.who) for seed in range(100) for fault in schedule(seed, Setting("storm"))[1]) < 5


@every_strategy
def test_training_goes_on_without_a_server_and_it_comes_in_again(text: str) -> None:
    lost, back = Fault(0.3, "kill", (FIRST_SERVER,)), Fault(0.6, "restart", (FIRST_SERVER,))
    world = play(5, parse(text, "strategy"), 3, (lost, back), servers=1)
    assert world.outcome == "ended" and len(ends(world)) == 1
    views = [view for _, view in sorted(world.promises.decided.items())]
    served = [[seat.uid for seat in view.seats if seat.serves] for view in views]
    assert served[0] != served[-1] and len(served[0]) == len(served[-1]) == 1


@every_strategy
@pytest.mark.parametrize("kind", ["power", "stop"])
def test_a_server_that_is_silent_holds_training_up_for_a_moment_at_most(text: str, kind: Kind) -> None:
    silent = Fault(0.3, kind, (FIRST_SERVER,), seconds=30.0 if kind == "stop" else 0.0)
    world = play(5, parse(text, "strategy"), 3, (silent,), servers=1)
    assert world.outcome == "ended" and world.clock.now < 20.0
