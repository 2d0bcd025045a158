"""What goes wrong and when: a storm of faults, drawn from a seed. Pure: nothing is broken here.

The number of faults is the rate times the time; given it, the moments of a Poisson process are independent and uniform,
so calm and trouble alternate as they do in life, and faults overlap. Exactly one of them hits the coordinator.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from stretto.errors import UsageError

Kind: TypeAlias = Literal["kill", "coordinator", "stop", "cut"]
"""``kill -9`` of an agent's processes, or of the coordinator; SIGSTOP and later SIGCONT; a cable pulled for a while."""

KINDS: Final[tuple[Kind, ...]] = ("kill", "coordinator", "stop", "cut")
COORDINATOR: Final = -1
"""Its label."""
MIX: Final[Mapping[Kind, float]] = {"kill": 0.6, "stop": 0.2, "cut": 0.2}
LASTS: Final[Mapping[Kind, tuple[float, float]]] = {"stop": (2.0, 8.0), "cut": (4.0, 10.0)}
"""Seconds, the least and the most."""
RETURN: Final = 10.0
"""Seconds after a kill in which its victim, who is on the way back, is not hit again."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """``at`` and for ``seconds``, from the storm's beginning. A cut hits a host: all ``labels`` that live there."""

    at: float
    kind: Kind
    labels: tuple[int, ...]
    seconds: float = 0.0


def storm(
    *,
    seed: int,
    per_hour: float,
    seconds: float,
    hosts: Sequence[Sequence[int]],
    mix: Mapping[Kind, float] = MIX,
    coordinator: bool = True,
    regular: bool = False,
) -> tuple[Fault, ...]:
    """The faults of ``seconds``, in order.

    Args:
        hosts: the labels of the agents on each host.
        mix: how often each kind comes, in any unit.
        coordinator: whether one fault is its end.
        regular: evenly spaced, so that none falls together with another.

    Raises:
        UsageError: a rate or a time that cannot be.
    """
    if per_hour < 0 or seconds <= 0:
        raise UsageError(f"{per_hour:g} faults an hour for {seconds:g} s: give a rate of 0 or more, and a time")
    draw = random.Random(f"storm {seed}")
    count = round(per_hour * seconds / 3600)
    moments = sorted(draw.uniform(0, seconds) for _ in range(count))
    if regular:
        moments = [i * seconds / count for i in range(count)]
    first = draw.randrange(count) if coordinator and count else None
    kinds, weights = tuple(mix), tuple(mix.values())
    busy: dict[int, float] = {}
    faults = []
    for number, at in enumerate(moments):
        kind = "coordinator" if number == first else draw.choices(kinds, weights)[0]
        fault = _hit(draw, at, kind, hosts, busy)
        busy.update(dict.fromkeys(fault.labels, fault.at + (fault.seconds or RETURN)))
        faults.append(fault)
    return tuple(sorted(faults))


def _hit(
    draw: random.Random, at: float, kind: Kind, hosts: Sequence[Sequence[int]], busy: Mapping[int, float]
) -> Fault:
    """A fault of a kind on somebody who has no other; at least one agent beside is well, else it comes later."""
    if kind == "coordinator":
        return Fault(at, kind, (COORDINATOR,))
    lasts = draw.uniform(*LASTS[kind]) if kind in LASTS else 0.0
    everybody = [label for host in hosts for label in host]
    while True:
        well = [label for label in everybody if busy.get(label, 0.0) <= at]
        units = hosts if kind == "cut" else [(label,) for label in everybody]
        chosen = [tuple(unit) for unit in units if set(unit) <= set(well) and len(unit) < len(well)]
        if chosen:
            return Fault(at, kind, draw.choice(chosen), lasts)
        later = [until for until in busy.values() if until > at]
        if not later:
            raise UsageError("a storm needs two agents at least, and two hosts: one has to go on")
        at = min(later)
