"""What a strategy sends: bytes that agents give to the network, counted in a run in which nothing goes wrong.

Two runs of the same agents differ by some whole windows of the strategy (after which what is due repeats), so what is
sent at the beginning and at the end is in both, and their difference is what the windows send.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from stretto.core import Schedule, Strategy
from stretto.errors import UsageError
from stretto.simulate.promises import Broken
from stretto.simulate.task import Job
from stretto.simulate.world import World

_STEPS: Final = 16
"""At least so many lie in a run."""
_TENSORS: Final = 4
_FAR: Final = 1024
"""No window of a strategy is longer, and none begins later."""
_PACE: Final = 10.0
"""Seconds of a step: many times what a message takes, as where a strategy is of use."""


def sent(strategy: Strategy, agents: int = 4, parameters: int = 131072) -> float:
    """Bytes of tensors that an agent gives to its links in a step: the mean over agents and over whole windows.

    Parameters are float32 and lie in four tensors; agents are two a machine.

    Raises:
        UsageError: one agent sends nothing, and there must be a parameter for each tensor.
    """
    if agents < 2 or parameters < _TENSORS:
        raise UsageError(f"{agents} agents, {parameters} parameters: give at least 2 and {_TENSORS}")
    begin, window = steady(strategy)
    steps = window * math.ceil(_STEPS / window)
    short, long = (_run(strategy, agents, parameters, begin + n * steps) for n in (1, 2))
    return (long - short) / (agents * steps)


def steady(strategy: Strategy) -> tuple[int, int]:
    """From which step on what is due repeats, and after how many steps each time.

    Agreements on nothing but who trained what are too small to count.

    >>> from stretto.strategies import gossip_sgd, hierarchical_local_sgd, post_local_sgd
    >>> steady(post_local_sgd(100, 16)), steady(hierarchical_local_sgd(3, 16)), steady(gossip_sgd(every=4, settle=16))
    ((99, 16), (0, 48), (0, 4))
    """
    schedules = [strategy.schedule] if strategy.schedule.fragments else []
    if strategy.beside is not None:
        schedules.append(strategy.beside.schedule)
    found = [_repeats(schedule) for schedule in schedules]
    return max(begin for begin, _ in found), math.lcm(*(window for _, window in found))


def _repeats(schedule: Schedule) -> tuple[int, int]:
    due = [schedule.turn(step) if schedule.due(step) else None for step in range(3 * _FAR)]
    window = next(n for n in range(1, _FAR) if due[_FAR : 2 * _FAR] == due[_FAR + n : 2 * _FAR + n])
    odd = [step for step in range(_FAR) if due[step] != due[step + window]]
    return (odd[-1] + 1 if odd else 0), window


def _run(strategy: Strategy, agents: int, parameters: int, steps: int) -> int:
    """Bytes that all agents send in so many steps."""
    world = World(0, strategy, agents, (), task=_task(parameters, agents * steps))
    world.pace = _PACE
    with torch.no_grad():
        world.clock.run(math.inf)
    if not world.clock.halted:
        raise Broken(f"with {strategy} the training did not end")
    return world.exchanges.nbytes


def _task(parameters: int, samples: int) -> Job:
    """One sample a batch; each pulls the same way."""
    return Job(
        pulls=torch.full((samples,), 0.5),
        pulled=torch.randn(parameters, generator=torch.Generator().manual_seed(0)).expand(samples, parameters),
        sizes=tuple(parameters * (i + 1) // _TENSORS - parameters * i // _TENSORS for i in range(_TENSORS)),
        batch_size=1,
        epochs=1,
        ballast=0,
        measures=False,
        numbers=0.0,
        late=True,
    )
