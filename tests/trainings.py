"""The same small training as N real agents, as N simulated ones, and as one process on the whole batch."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stretto.agent import Agent
from stretto.buckets import Room, layouts
from stretto.core import Link, Strategy
from stretto.data import Shard
from stretto.gradients import Gradients
from stretto.preparing import named
from stretto.session.carrier import Carrier
from stretto.session.lanes import Place
from stretto.session.rounds import Order, Round
from stretto.sim import World
from stretto.text import parse

SAMPLES, FEATURES, CLASSES = 157, 12, 5
BATCH = 8
"""Samples of one agent in a step; the number of samples is prime, so batches are uneven."""


def model(width: int = 32) -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(
        nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    return x, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def digest(net: nn.Module) -> str:
    found = hashlib.blake2s()
    for p in net.parameters():
        found.update(p.detach().numpy().tobytes())
    return found.hexdigest()


def weights(net: nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten() for p in net.parameters()]).tolist()


def real(agent: Agent, strategy: str, epochs: int, width: int) -> dict[str, Any]:
    """One real agent's training: its weights' digest after every step, and its last weights."""
    net = model(width)
    if agent.rank:
        with torch.no_grad():
            [p.zero_() for p in net.parameters()]
    net, optimizer = agent.prepare(net, sgd(net), strategy=strategy)
    digests = [digest(net)]
    for x, y in agent.shard(data(), BATCH, epochs=epochs, seed=3):
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        digests.append(digest(net))
    return {"digests": digests, "weights": weights(net), "agent": agent.digest()}


class Around:
    """All that carrying out averages asks for."""

    def cpu(self) -> float:
        return 0.0


def simulated(size: int, strategy: str, epochs: int, width: int, *, native: bool = False) -> list[list[str]]:
    """The digests after every step of every simulated agent."""
    chosen: Strategy = parse(strategy, "strategy")

    async def live(link: Link) -> list[str]:
        net = model(width)
        optimizer = sgd(net)
        sent: list[Tensor] = []

        def send(_: int, of: int, flat: Tensor, mean: Tensor) -> Any:
            sent.append(flat)
            return lambda: None

        def weigh(share: float) -> None:
            gradients.weight = share

        room = Room(lambda n: torch.zeros(n, dtype=torch.uint8), leads=lambda: link.rank == 0)
        gradients = Gradients([net], room, send)
        carrier = Carrier(Around())  # type: ignore[arg-type]
        carrier.enter(Place(1, link.rank, link.hosts), None)
        carrier.use(0, chosen, layouts(gradients.buckets, named([net])))
        shard = Shard(data(), BATCH, epochs=epochs, seed=3, rank=link.rank, size=link.size, on_batch=weigh)
        digests = [digest(net)]
        for step, (x, y) in enumerate(shard, 1):
            with torch.enable_grad():
                functional.cross_entropy(net(x), y).backward()
            for bucket, flat in enumerate(sent):
                order = Order(0, "mean", flat, bucket=bucket, part=bucket, of=len(sent))
                flat.copy_(await carrier.carry_out(Round(step, len(sent), fence=True), order, link, counts=True))
            sent.clear()
            for bucket in gradients.buckets:
                bucket.settle()
            optimizer.step()
            optimizer.zero_grad()
            digests.append(digest(net))
        return digests

    return World(size, hosts=(0,) * size, native=native).run(live)


def alone(size: int, epochs: int, width: int) -> list[float]:
    """The weights of one process that trains, in every step, the batches of ``size`` agents at once."""
    net = model(width)
    optimizer = sgd(net)
    parts = [Shard(data(), BATCH, epochs=epochs, seed=3, rank=rank, size=size) for rank in range(size)]
    for batches in zip(*parts, strict=True):
        x, y = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(net)
