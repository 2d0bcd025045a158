"""What a bucket's codecs remember: in rounds that are redone, epochs that end, checkpoints, other strategies."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import stretto.strategies  # noqa: F401  registers their names
from stretto import state
from stretto.codecs import Int8
from stretto.core import Like, Link, Named, Strategy
from stretto.errors import DataError
from stretto.session.lanes import Lanes, Layout, Place
from stretto.session.metered import Meter
from stretto.sim import World
from stretto.text import parse

GRADIENTS, RIDERS = 96, 5
LAYOUT = Layout(GRADIENTS, (Named("a.weight", (8, 10)), Named("a.bias", (8,), "bias"), Named("n.weight", (8,), "norm")))
REMEMBERING = [
    "feedback(topk(0.1))",
    "feedback(sign)",
    "feedback(lowrank(1))",
    "feedback(topk(0.2)+int8)",
    "feedback(topk(0.2)+int2, decay=0.95)",
    "int8(stochastic=true)",
    "randomk(0.25)",
    "lowrank(2)",
    "per_layer({biases: identity, norms: feedback(bf16)}, rest=feedback(int4))",
]
every_codec = pytest.mark.parametrize("codec", REMEMBERING)


def strategy(codec: str, topology: str = "auto") -> Strategy:
    found: Strategy = parse(f"allreduce(topology={topology}, codec={codec})", "strategy")
    return found


class Team:
    """Agents in a simulated world, each with the lanes of one bucket, round after round."""

    def __init__(self, size: int, codec: str, topology: str = "auto", epoch: int = 1) -> None:
        self.chosen = strategy(codec, topology)
        self.lanes = [self.fresh() for _ in range(size)]
        self.epoch, self.number = epoch, 0

    def fresh(self) -> Lanes:
        return Lanes(self.chosen, LAYOUT, 7, Meter(lambda: 0.0))

    def place(self, rank: int) -> Place:
        return Place(self.epoch, rank, (0,) * len(self.lanes))

    def step(self, xs: list[Tensor]) -> Tensor:
        """One round; the mean, which is the same bits at all."""
        self.number += 1

        async def once(link: Link) -> Tensor:
            x = xs[link.rank].clone()
            return await self.lanes[link.rank].mean(link, x, self.place(link.rank), self.number)

        means = World(len(self.lanes)).run(once)
        assert all(torch.equal(mean, means[0]) for mean in means)
        found: Tensor = means[0]
        return found

    def undo(self) -> None:
        for lanes in self.lanes:
            lanes.undo(self.number)
        self.number -= 1

    def move(self, stay: list[int], come: int = 0) -> None:
        """Another epoch, of those who stay and so many newcomers."""
        for lanes in self.lanes:
            lanes.flush()
        self.epoch += 1
        self.lanes = [self.lanes[rank] for rank in stay] + [self.fresh() for _ in range(come)]

    def owed(self) -> Tensor:
        """What all hold back, per agent."""
        for lanes in self.lanes:
            lanes.flush()
        held = [lanes.state()["owed"] for lanes in self.lanes]
        return sum((x for x in held if x is not None), torch.zeros(GRADIENTS)) / len(self.lanes)


def gradients(size: int, number: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(100 * size + number)
    return [torch.randn(GRADIENTS + RIDERS, generator=draw) for _ in range(size)]


@every_codec
@pytest.mark.parametrize("topology", ["auto", "ring", "star", "tree", "double_tree", "butterfly"])
def test_gradients_are_coded_and_what_rides_along_is_not(codec: str, topology: str) -> None:
    team, xs = Team(4, codec, topology), gradients(4, 0)
    mean, exact = team.step(xs), torch.stack(xs).mean(0)
    torch.testing.assert_close(mean[GRADIENTS:], exact[GRADIENTS:])
    assert not torch.equal(mean[:GRADIENTS], exact[:GRADIENTS])


@every_codec
def test_a_round_that_is_undone_never_was(codec: str) -> None:
    team, twin = Team(3, codec), Team(3, codec)
    for number in range(2):
        team.step(gradients(3, number)), twin.step(gradients(3, number))
    team.step(gradients(3, 50))
    team.undo()
    for number in range(2, 4):
        assert torch.equal(team.step(gradients(3, number)), twin.step(gradients(3, number)))


@every_codec
def test_a_round_that_is_undone_after_its_epoch_ended_owes_what_was_held_back_before_it(codec: str) -> None:
    team, twin = Team(3, codec), Team(3, codec)
    team.step(gradients(3, 0)), twin.step(gradients(3, 0))
    team.step(gradients(3, 50))
    team.move([0, 1, 2]), twin.move([0, 1, 2])
    team.undo()
    assert torch.equal(team.step(gradients(3, 1)), twin.step(gradients(3, 1)))


def test_cpu_seconds_and_bytes_of_codecs_are_counted() -> None:
    """Of two agents on a ring each encodes two halves, and the mean of its own; and decodes two, and both means."""
    team, ticks = Team(2, "int8", "ring"), itertools.count()
    meters = [Meter(lambda: float(next(ticks))) for _ in range(2)]
    team.lanes = [Lanes(team.chosen, LAYOUT, 7, meter) for meter in meters]
    team.step(gradients(2, 0))
    half = Int8().size(Like((GRADIENTS // 2,), torch.float32))
    assert [(m.seconds, m.dense, m.coded) for m in meters] == 2 * [(3 + 4, 3 * 4 * GRADIENTS // 2, 3 * half)]


@pytest.mark.parametrize("codec", [codec for codec in REMEMBERING if "feedback" in codec and "decay" not in codec])
def test_nothing_is_lost_by_feedback_whatever_epochs_begin(codec: str) -> None:
    """All that was given is in the means so far and in what is held back."""
    team = Team(4, codec)
    given = received = torch.zeros(GRADIENTS)
    for number in range(9):
        if number in (3, 6):
            team.move([2, 0, 3, 1])
        xs = gradients(4, number)
        given = given + torch.stack(xs).mean(0)[:GRADIENTS]
        received = received + team.step(xs)[:GRADIENTS]
    assert (given - received).abs().max() > 0.1
    torch.testing.assert_close(received + team.owed(), given, atol=1e-4, rtol=1e-4)


@every_codec
def test_newcomers_draw_what_the_others_draw(codec: str) -> None:
    team = Team(3, codec)
    for number in range(2):
        team.step(gradients(3, number))
    team.move([0, 2], come=2)
    for number in range(2, 5):
        team.step(gradients(4, number))


@every_codec
def test_what_is_saved_and_restored_changes_no_bit(codec: str) -> None:
    team, twin = Team(3, codec), Team(3, codec)
    for number in range(3):
        team.step(gradients(3, number)), twin.step(gradients(3, number))
    resumed = Team(3, codec, epoch=5)
    for rank, (lanes, old) in enumerate(zip(resumed.lanes, team.lanes, strict=True)):
        lanes.restore([there_and_back(old.state())], resumed.place(rank), 1.0)
    for number in range(3, 6):
        assert torch.equal(resumed.step(gradients(3, number)), twin.step(gradients(3, number)))


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 3), (3, 1)])
def test_on_another_number_of_agents_what_all_held_back_is_owed(before: int, after: int) -> None:
    team = Team(before, "feedback(topk(0.1))")
    for number in range(3):
        team.step(gradients(before, number))
    saved = [there_and_back(lanes.state()) for lanes in team.lanes]
    resumed = Team(after, "feedback(topk(0.1))")
    for rank, lanes in enumerate(resumed.lanes):
        lanes.restore(saved[rank::after], resumed.place(rank), after / before)
    torch.testing.assert_close(resumed.owed(), team.owed())


def test_another_strategy_pays_what_the_one_before_owes() -> None:
    team = Team(2, "feedback(topk(0.05))")
    given = team.step(gradients(2, 0))[:GRADIENTS]
    dense = Team(2, "identity")
    for lanes, before in zip(dense.lanes, team.lanes, strict=True):
        lanes.take_over(before)
    given = given + dense.step(gradients(2, 1))[:GRADIENTS]
    exact = torch.stack(gradients(2, 0)).mean(0) + torch.stack(gradients(2, 1)).mean(0)
    torch.testing.assert_close(given, exact[:GRADIENTS])


def test_alone_nothing_is_coded() -> None:
    team = Team(2, "feedback(topk(0.05))")
    team.step(gradients(2, 0))
    owed = team.owed()
    team.move([0])
    alone = team.step([torch.zeros(GRADIENTS + RIDERS)])[:GRADIENTS]
    assert alone.abs().sum() > 0 and owed.abs().sum() > 0


def test_resumed_with_another_strategy_what_the_one_before_held_back_is_owed() -> None:
    team, other = Team(2, "feedback(topk(0.1))", "star"), Team(2, "feedback(int8)", "ring")
    team.step(gradients(2, 0))
    for rank, lanes in enumerate(other.lanes):
        lanes.restore([there_and_back(team.lanes[rank].state())], other.place(rank), 1.0)
    torch.testing.assert_close(other.owed(), team.owed())


def test_what_does_not_fit_is_refused() -> None:
    team = Team(2, "feedback(topk(0.1))")
    team.step(gradients(2, 0))
    broken = there_and_back(team.lanes[0].state())
    broken["owed"] = torch.zeros(3)
    with pytest.raises(DataError, match="does not fit this model"):
        team.lanes[0].restore([broken], team.place(0), 1.0)


def there_and_back(remembered: Any) -> Any:
    """As a checkpoint has it."""
    return state.unpack(state.packed(remembered))
