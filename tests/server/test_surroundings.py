"""What a script may have around its optimizer's step, on servers: all of it does what it does with all-reduce."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lives import BATCH, close, data, model
from processes import agents
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from trainings import CLASSES, FEATURES, weights

from stretto.agent import Agent

pytestmark = pytest.mark.network


class Tied(nn.Module):
    """Two layers with one weight, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.frozen, self.first, self.second = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, CLASSES)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.second(torch.tanh(self.first(self.frozen(x))))
        out: torch.Tensor = self.last(torch.tanh(hidden))
        return out


def plain(agent: Agent, net: nn.Module, optimizer: Optimizer, shard: Any) -> None:
    for x, y, _ in shard:
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def scheduled(agent: Agent, net: nn.Module, optimizer: Optimizer, shard: Any) -> None:
    scheduler = OneCycleLR(optimizer, 0.2, total_steps=len(shard) + 4)
    for x, y, _ in shard:
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def clipped(agent: Agent, net: nn.Module, optimizer: Optimizer, shard: Any) -> None:
    for x, y, _ in shard:
        functional.cross_entropy(net(x), y).backward()
        nn.utils.clip_grad_value_(net.parameters(), 1000.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def net_zeroed(agent: Agent, net: nn.Module, optimizer: Optimizer, shard: Any) -> None:
    for x, y, _ in shard:
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        net.zero_grad()


def adding_up(agent: Agent, net: nn.Module, optimizer: Optimizer, shard: Any) -> None:
    """Two halves of every batch."""
    for x, y, _ in shard:
        half = len(x) // 2
        with agent.accumulate():
            (functional.cross_entropy(net(x[:half]), y[:half], reduction="sum") / len(x)).backward()
        (functional.cross_entropy(net(x[half:]), y[half:], reduction="sum") / len(x)).backward()
        optimizer.step()
        optimizer.zero_grad()


def scaled(agent: Agent, net: nn.Module, optimizer: Optimizer, shard: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for x, y, _ in shard:
        scaler.scale(functional.cross_entropy(net(x), y)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


LOOPS: dict[str, Callable[..., None]] = {
    "plain": plain,
    "a scheduler": scheduled,
    "clipping": clipped,
    "net.zero_grad()": net_zeroed,
    "halves of batches": adding_up,
    "a scaler": scaled,
}


def train(agent: Agent, strategy: str, loop: str, tied: bool = False, groups: bool = False) -> dict[str, Any]:
    net = Tied().double() if tied else model()
    parameters: Any = [p for p in net.parameters() if p.requires_grad]
    if groups:
        parameters = [{"params": parameters[:2], "lr": 0.3}, {"params": parameters[2:], "weight_decay": 0.1}]
    optimizer = SGD(parameters, lr=0.1, momentum=0.9)
    net, optimizer = agent.prepare(net, optimizer, strategy=strategy)
    LOOPS[loop](agent, net, optimizer, agent.shard(data(), BATCH, epochs=2, seed=3))
    return {"digest": agent.digest(), "weights": weights(net)}


@pytest.mark.parametrize("loop", LOOPS)
def test_bsp_does_with_it_what_all_reduce_does(loop: str) -> None:
    served, reduced = (agents(3, train, s, loop) for s in ("bsp", "allreduce"))
    assert len({life["digest"] for life in served}) == 1
    assert close(served[0]["weights"], reduced[0]["weights"])


@pytest.mark.parametrize("loop", LOOPS)
def test_asp_does_it_too(loop: str) -> None:
    """Alone it is the same step; among others, all end alike."""
    assert len({life["digest"] for life in agents(3, train, "asp", loop)}) == 1
    served, alone = (agents(1, train, s, loop) for s in ("asp", "allreduce"))
    assert close(served[0]["weights"], alone[0]["weights"])


@pytest.mark.parametrize(("tied", "groups"), [(True, False), (False, True), (True, True)])
def test_tied_weights_frozen_parameters_and_groups_are_as_with_all_reduce(tied: bool, groups: bool) -> None:
    served, reduced = (agents(3, train, s, "plain", tied, groups) for s in ("bsp(slot=64)", "allreduce"))
    assert len({life["digest"] for life in served}) == 1
    assert close(served[0]["weights"], reduced[0]["weights"])


def left_out(agent: Agent, strategy: str) -> dict[str, Any]:
    """The first layer is in no param group, though it has gradients."""
    net = model()
    net, optimizer = agent.prepare(net, SGD(net[2:].parameters(), lr=0.1), strategy=strategy)
    plain(agent, net, optimizer, agent.shard(data(), BATCH, epochs=2, seed=3))
    return {"digest": agent.digest(), "weights": weights(net)}


def test_a_parameter_that_the_optimizer_has_not_stays_as_it_is() -> None:
    served, reduced = (agents(3, left_out, s) for s in ("bsp", "allreduce"))
    assert len({life["digest"] for life in served}) == 1
    assert close(served[0]["weights"], reduced[0]["weights"])


def in_bfloat16(agent: Agent, strategy: str) -> dict[str, Any]:
    net = model().float()
    net, optimizer = agent.prepare(net, Adam(net.parameters(), lr=0.01), strategy=strategy)
    x, y, _ = data()
    for xs, ys, _ in agent.shard((x.float(), y, torch.arange(len(x))), BATCH, epochs=8, seed=3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(net(xs), ys)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"digest": agent.digest(), "weights": weights(net), "dtype": str(next(net.parameters()).dtype)}


def test_autocast_is_as_with_all_reduce() -> None:
    served, reduced = (agents(2, in_bfloat16, s) for s in ("bsp", "allreduce"))  # the sum of two has no order
    assert len({life["digest"] for life in served}) == 1 and served[0]["dtype"] == "torch.float32"
    assert close(served[0]["weights"], reduced[0]["weights"], within=1e-6)


def normed(agent: Agent, strategy: str, rule: Any) -> dict[str, Any]:
    net = nn.Sequential(nn.BatchNorm1d(FEATURES, dtype=torch.float64), *model())
    net, optimizer = agent.prepare(net, SGD(net.parameters(), lr=0.1), strategy=strategy, buffers=rule)
    plain(agent, net, optimizer, agent.shard(data(), BATCH, epochs=2, seed=3))
    return {"digest": agent.digest(), "buffers": [b.double().flatten().tolist() for b in net.buffers()]}


@pytest.mark.parametrize("strategy", ["asp", "ssp(2)", "bsp"])
@pytest.mark.parametrize("rule", ["mean", "broadcast"])
def test_statistics_of_batch_norm_are_alike_at_the_end(rule: str, strategy: str) -> None:
    lives = agents(3, normed, strategy, rule)
    assert lives[1:] == lives[:-1]


def test_statistics_may_stay_each_agents_own() -> None:
    lives = agents(2, normed, "asp", "local")
    assert lives[0]["buffers"] != lives[1]["buffers"]
