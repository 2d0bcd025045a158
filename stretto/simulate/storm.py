"""Many simulated runs, each from a seed; a run that breaks a promise is shrunk to the fewest faults that still break it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stretto.core import Strategy
from stretto.simulate.faults import Fault, draw
from stretto.simulate.world import World

SPAN = 4.0
"""Seconds of a run in which most faults strike; without any it takes about as long."""


@dataclass(frozen=True, slots=True)
class Break:
    """A broken promise: why, and the fewest faults that break it."""

    seed: int
    agents: int
    why: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {self.agents} agents: {self.why}", *(f"  {fault}" for fault in self.faults)]
        return "\n".join(lines)


def schedule(seed: int, mix: str, agents: range) -> tuple[int, tuple[Fault, ...]]:
    """How many agents, and what happens to them."""
    rng = random.Random(seed ^ 0x5EED)
    size = rng.choice(agents)
    return size, draw(rng, mix, size, SPAN)


def play(
    seed: int, strategy: Strategy, size: int, faults: Sequence[Fault], log: Callable[[str], None] | None = None
) -> World:
    """One run.

    Raises:
        Broken: a promise does not hold.
    """
    world = World(seed, strategy, size, faults, log)
    world.run()
    return world


def attempt(seed: int, strategy: Strategy, size: int, faults: Sequence[Fault]) -> Exception | None:
    try:
        play(seed, strategy, size, faults)
    except Exception as e:
        return e
    return None


def shrink(seed: int, strategy: Strategy, size: int, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """As few faults as still break it."""
    at = 0
    while at < len(faults):
        fewer = faults[:at] + faults[at + 1 :]
        if attempt(seed, strategy, size, fewer) is None:
            at += 1
        else:
            faults = fewer
    return faults


def examine(seed: int, strategy: Strategy, mix: str, agents: range) -> Break | World:
    """One seed: how it broke, or the run as it ended."""
    size, faults = schedule(seed, mix, agents)
    try:
        return play(seed, strategy, size, faults)
    except Exception as e:
        least = shrink(seed, strategy, size, faults)
        error = attempt(seed, strategy, size, least) or e
        return Break(seed, size, f"{type(error).__name__}: {error}", least)


def breaks(seeds: range, strategy: Strategy, mix: str, agents: range) -> Iterator[Break]:
    for seed in seeds:
        found = examine(seed, strategy, mix, agents)
        if isinstance(found, Break):
            yield found
