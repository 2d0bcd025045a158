"""What loose strategies are equal to: each other, what one writes down by hand, and themselves in the simulator."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import loosely
import pytest
import torch
from lives import close
from processes import agents
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from trainings import BATCH, data, model, weights

from stretto.core import Link
from stretto.data import Shard
from stretto.graphs import Ring, spectral_gap
from stretto.links import addresses
from stretto.loose import Loose
from stretto.outers import Nesterov
from stretto.preparing import is_native
from stretto.sim import World
from stretto.text import parse

pytestmark = pytest.mark.network
SIZE, EPOCHS = 3, 2

Lives: TypeAlias = list[dict[str, Any]]


def on_processes(strategy: str, momentum: float = 0.9) -> Lives:
    return agents(SIZE, loosely.real, strategy, momentum, EPOCHS)


def in_the_simulator(strategy: str, momentum: float = 0.9) -> Lives:
    return loosely.simulated(World(SIZE, hosts=(0,) * SIZE), strategy, momentum, EPOCHS)


everywhere = pytest.mark.parametrize("play", [on_processes, in_the_simulator], ids=["tcp", "sim"])


def same(one: Lives, other: Lives) -> bool:
    """The same bits at every agent after every step."""
    return [life["digests"] for life in one] == [life["digests"] for life in other]


def near(one: Lives, other: Lives, within: float = 1e-6) -> bool:
    return all(close(a["weights"], b["weights"], within) for a, b in zip(one, other, strict=True))


# 1. Right


@everywhere
def test_streaming_diloco_of_one_fragment_that_is_waited_for_is_diloco(play: Callable[..., Lives]) -> None:
    diloco = play("diloco(4, topology=ring)")
    for mix in ("", ", 0.0"):
        assert same(play(f"streaming_diloco(4, 1, 0{mix}, topology=ring)"), diloco)


@everywhere
def test_diloco_at_every_step_without_momentum_and_at_rate_one_is_local_sgd(play: Callable[..., Lives]) -> None:
    assert same(play("diloco(1, 1.0, 0.0, topology=ring)"), play("local_sgd(1, topology=ring)"))


@everywhere
def test_sparse_loco_that_sends_all_as_it_is_is_diloco_without_momentum(play: Callable[..., Lives]) -> None:
    assert near(play("sparse_loco(4, 1.0, 0.7, values=fp16, topology=ring)"), play("diloco(4, 0.7, 0.0)"), 1e-4)


@everywhere
def test_gossip_on_the_complete_graph_is_the_mean_and_for_sgd_all_reduce(play: Callable[..., Lives]) -> None:
    lives = play("gossip_sgd(complete, settle=4)", 0.0)
    assert near(lives, play("local_sgd(1, topology=ring)", 0.0))
    assert near(lives, on_processes("allreduce", 0.0))


def test_demo_that_sends_all_frequencies_is_all_reduce() -> None:
    assert near(on_processes("demo(1.0, 1.0)"), on_processes("allreduce"))


def test_with_one_agent_on_each_machine_hierarchical_local_sgd_is_local_sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the last bits: what is alone on its machine goes to the drift and back."""
    hierarchical, local = "hierarchical_local_sgd(2, 6)", "local_sgd(6)"
    one, other = (loosely.simulated(World(SIZE), text, 0.9, EPOCHS) for text in (hierarchical, local))
    assert near(one, other)
    monkeypatch.setattr(addresses, "machine_id", lambda: f"a machine for {os.getpid()}")
    assert near(lives := on_processes(hierarchical), on_processes(local))
    assert lives[0]["hosts"] == [0, 1, 2]


Weights: TypeAlias = list[Tensor]
"""Those of each agent, flat."""


def by_hand(every: int, agree: Callable[[Weights, bool, bool], Weights]) -> list[list[float]]:
    """The last weights of agents that train in one loop.

    ``agree`` is given all weights after every ``every`` batches, and after the last one (it is told whether it is that,
    and whether it is due), and gives those that agents go on from.
    """
    nets = [model(loosely.WIDTH) for _ in range(SIZE)]
    optimizers = [loosely.sgd(net, 0.9) for net in nets]
    shares = [1.0] * SIZE
    shards = [
        Shard(data(), BATCH, epochs=EPOCHS, seed=3, rank=rank, size=SIZE, on_batch=partial(shares.__setitem__, rank))
        for rank in range(SIZE)
    ]
    for step, batches in enumerate(zip(*shards, strict=True), 1):
        for net, optimizer, (x, y), share in zip(nets, optimizers, batches, shares, strict=True):
            (share * functional.cross_entropy(net(x), y)).backward()
            optimizer.step()
            optimizer.zero_grad()
        if step % every == 0 or shards[0].ends:
            found = agree([flat(net) for net in nets], shards[0].ends, step % every == 0)
            for net, x in zip(nets, found, strict=True):
                vector_to_parameters(x.clone(), net.parameters())
    return [weights(net) for net in nets]


def beginning() -> Tensor:
    return flat(model(loosely.WIDTH))


def flat(net: nn.Module) -> Tensor:
    return parameters_to_vector(net.parameters()).detach()


def mean(xs: Weights) -> Tensor:
    return torch.stack(xs).mean(0)


@everywhere
@pytest.mark.parametrize("guess", [0.0, 1.0])
def test_eager_diloco_makes_each_outer_step_one_round_late_and_guesses_it_meanwhile(
    play: Callable[..., Lives], guess: float
) -> None:
    anchor, outer, state = beginning(), Nesterov(0.7, 0.9), None
    since, late = [anchor] * SIZE, torch.zeros_like(anchor)

    def agree(xs: Weights, last: bool, _: bool) -> Weights:
        nonlocal anchor, state, since, late
        drifts = [a - x for a, x in zip(since, xs, strict=True)]
        move, state = outer.update(late, state)
        late = mean(drifts)
        anchor = anchor - move - (late if last else 0.0)  # at the end all agree on the mean, without an outer step
        ahead = [outer.update(drift * guess / SIZE, state)[0] if guess and not last else 0.0 for drift in drifts]
        since = [anchor - step for step in ahead]
        return since

    found = [life["weights"] for life in play(f"eager_diloco(3, {guess})")]
    assert all(close(a, b, 1e-6) for a, b in zip(found, by_hand(3, agree), strict=True))


@everywhere
def test_easgd_draws_all_to_where_the_centre_was_and_it_to_where_they_were(play: Callable[..., Lives]) -> None:
    """All at once; so with both rates at one they change places, and no two agents differ after that."""
    for alpha, beta in ((0.3, 0.9), (1.0, 1.0)):
        centre = beginning()

        def agree(xs: Weights, last: bool, due: bool) -> Weights:
            nonlocal centre
            before, centre = centre, centre + (beta if due else 1.0) * (mean(xs) - centre)  # noqa: B023
            return [centre if last else x + alpha * (before - x) for x in xs]  # noqa: B023

        found = [life["weights"] for life in play(f"easgd(3, {alpha}, {beta})")]
        assert all(close(a, b, 1e-6) for a, b in zip(found, by_hand(3, agree), strict=True))


@pytest.mark.parametrize("settle", [4, 100])
def test_without_gradients_agents_come_together_as_the_gap_of_their_graph_predicts(settle: int) -> None:
    """What they settle meanwhile changes nothing."""
    size, steps, strategy = 8, 40, parse(f"gossip_sgd(ring, settle={settle})", "strategy")

    async def live(link: Link) -> list[Tensor]:
        net = model(4).double()
        _, loose = loosely.loosely(link, strategy, net)
        assert isinstance(loose, Loose)
        vector_to_parameters(flat(net) + link.rank**2, net.parameters())
        found = [flat(net)]
        for _ in range(steps):
            await loose.stepped()
            found.append(flat(net))
        await loose.synchronise()
        return found

    distances = []
    for at in zip(*World(size).run(live), strict=True):
        stacked = torch.stack(at)
        distances.append(float((stacked - stacked.mean(0)).norm()))
        assert torch.allclose(stacked.mean(0), flat(model(4).double()) + 17.5, atol=1e-6)
    shrunk = (distances[-1] / distances[steps // 2]) ** (2 / steps)
    assert shrunk == pytest.approx(1 - spectral_gap(Ring(), size), rel=0.1)


# 2. Real = simulated


@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize(
    "strategy",
    [
        "local_sgd(4, topology=ring)",
        "local_sgd(4, topology=ring, codec=int8)",
        "post_local_sgd(3, 4, topology=ring)",
        "diloco(5, topology=ring)",
        "diloco(5, topology=ring, codec=feedback(topk(0.1)))",
        "sparse_loco(4, 0.1, topology=ring)",
        "streaming_diloco(6, 3, overlap=0, topology=ring)",
        "streaming_diloco(6, 3, overlap=2, topology=ring)",
        "streaming_diloco(6, 3, overlap=2, mix=0.5, topology=ring)",
        "streaming_diloco(6, 3, overlap=2, topology=ring, codec=int8)",
        "eager_diloco(3, topology=ring)",
        "easgd(3, topology=ring)",
        "hierarchical_local_sgd(2, 6, topology=ring)",
        "gossip_sgd(ring, settle=4)",
        "gossip_sgd(matching, 2, settle=4, codec=int8(stochastic=true))",
        "push_sum(random_push, settle=4)",
        "noloco(3, settle=4)",
        "noloco(3, settle=4, codec=int8)",
        "delayed(allreduce(topology=ring))",
        "delayed(allreduce(topology=ring, codec=feedback(int4)))",
    ],
)
def test_real_processes_give_the_simulators_weights_bit_for_bit_after_every_step(strategy: str, link: str) -> None:
    """Also where agents have weights of their own, and with draws."""
    lives = agents(3, loosely.real, strategy, 0.9, EPOCHS, link=link)
    world = loosely.like(lives, native=link == "shm" and is_native(parse(strategy, "strategy")))
    assert lives == loosely.simulated(world, strategy, 0.9, EPOCHS)
    assert len(set(lives[0]["digests"])) > 12
