"""A training whose agents die, are stopped and come again, and what is asked of those who are left at its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Died, Run
from torch import Tensor, nn
from torch.nn import functional
from trainings import CLASSES, FEATURES, sgd

from stretto.agent import Agent

every_link = pytest.mark.parametrize("link", ["tcp", "shm"])
KILLED = Died(signal=signal.SIGKILL)
SAMPLES, BATCH = 61, 4
"""The number of samples is prime, so agents' batches are uneven."""


def model(width: int = 16) -> nn.Sequential:
    """In float64, so that whoever computes it in another order comes to the same."""
    torch.manual_seed(11)
    layers = [nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(width, CLASSES)).double()


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Features, classes, and the samples' numbers."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (SAMPLES,), generator=generator), torch.arange(SAMPLES)


def close(a: Sequence[float], b: Sequence[float], within: float = 1e-12) -> bool:
    return (torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)).abs().max().item() <= within


def kill_both() -> None:
    """This agent dies: its trainer and its courier."""
    os.kill(0, signal.SIGKILL)


def stay(
    agent: Agent,
    life: int,
    stop: str,
    dies: str = "",
    rule: Any = "mean",
    width: int = 16,
    strategy: str = "allreduce",
) -> dict[str, Any]:
    """Train until the file ``stop`` is there, with all that a script may have. ``dies``: ``"LABEL LIFE MOMENT"``."""
    torch.manual_seed(life + 10 * agent.label)
    net = nn.Sequential(nn.BatchNorm1d(FEATURES, dtype=torch.float64), *model(width))
    optimizer = sgd(net)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0 * (life + 1), growth_interval=3)
    net, optimizer, scheduler, scaler = agent.prepare(
        net, optimizer, scheduler, scaler, buffers=rule, strategy=strategy
    )
    shard = agent.shard(data(), BATCH, epochs=100_000, seed=3)
    for moment in ("snapshot", "take_over"):
        if dies == f"{agent.label} {life} {moment}":
            setattr(agent, moment, lambda _: kill_both())
    for x, y, _ in shard:
        if agent.steps == 4 and dies == f"{agent.label} {life} step":
            kill_both()
        scaler.scale(functional.cross_entropy(net(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
        agent.trace.event("stepped", step=agent.steps, drawn=shard.drawn)
        if agent.mean(float(Path(stop).exists())) > 0:
            break
        time.sleep(0.002)
    agent.synchronise()
    return {
        "digest": agent.digest(),
        "momentum": [optimizer.state[p]["momentum_buffer"].sum().item() for p in net.parameters()],
        "scale": scaler.get_scale(),
        "schedule": [scheduler.last_epoch, scheduler.get_last_lr()],
        "ledger": shard.proof(),
        "steps": agent.steps,
        "labels": list(agent.epoch.labels),
    }


def others(run: Run, *labels: int) -> None:
    """Wait until agent ``labels[0]`` is in a view of these, and all of them have left the first one."""
    run.lives[labels[0]].wait("view", labels=list(labels))


def further(run: Run, number: int, batches: int) -> None:
    """Wait until life ``number`` has come so many batches further."""
    life = run.lives[number]
    life.wait("stepped")
    life.wait("stepped", drawn=life.events("stepped")[-1]["drawn"] + batches)


def alike(ends: list[Any], labels: list[int]) -> None:
    """The last lives of these, and nobody else, were in at the end, with the same state."""
    assert all(isinstance(end, dict) for end in ends), ends
    assert all(end == ends[0] for end in ends), ends
    assert sorted(ends[0]["labels"]) == labels
    assert "none twice" in ends[0]["ledger"] or "exactly once" in ends[0]["ledger"]
