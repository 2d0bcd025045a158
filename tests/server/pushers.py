"""One training on servers, as real agents: with all that a script may have around its step, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lives import BATCH, data, model
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer
from trainings import weights

from stretto.agent import Agent

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.1),
    "momentum": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda parameters: Adam(parameters, lr=0.01),
    "adamw": lambda parameters: AdamW(parameters, lr=0.01),
}


def train(
    agent: Agent,
    strategy: str,
    kind: str = "momentum",
    epochs: int = 2,
    place: str | None = None,
    steps: int = 0,
) -> dict[str, Any]:
    """So many epochs, or ``steps`` of this agent's; what it came to."""
    net = model()
    if agent.rank:
        with torch.no_grad():
            [p.zero_() for p in net.parameters()]
    net, optimizer = agent.prepare(net, OPTIMIZERS[kind](net.parameters()), strategy=strategy)
    shard = agent.shard(data(), BATCH, epochs=epochs, seed=3)
    resumed = agent.checkpoint(place, every=1000.0) if place else False
    begun = {"digest": agent.digest(), "proof": shard.proof()}
    drawn = []
    for x, y, numbers in shard:
        drawn.append(numbers.tolist())
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if len(drawn) == steps:
            break
    return {
        "digest": agent.digest(),
        "weights": weights(net),
        "drawn": drawn,
        "proof": shard.proof(),
        "steps": agent.steps,
        "resumed": resumed,
        "begun": begun,
    }
