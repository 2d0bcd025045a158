"""What goes wrong in a simulated run: a list of faults, drawn from a seed beforehand, so that it can be shrunk."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from stretto.core import FIRST_SERVER
from stretto.errors import UnknownName
from stretto.membership.messages import FOUNDER

Kind: TypeAlias = Literal["kill", "fall", "power", "restart", "leave", "cut", "stop", "snap", "sever", "suspect"]

_DEATHS: Final[tuple[Kind, ...]] = ("kill", "kill", "fall", "fall", "power", "restart", "restart", "restart")
_CUTS: Final[tuple[Kind, ...]] = ("cut", "cut", "stop", "snap", "sever", "sever", "suspect")
MIXES: Final[dict[str, tuple[Kind, ...]]] = {
    "none": (),
    "deaths": _DEATHS,
    "cuts": _CUTS,
    "storm": (*_DEATHS, *_CUTS, "leave"),
}

WORDS: Final[dict[Kind, str]] = {
    "kill": "dies; what it said last may be lost",
    "fall": "dies when it has sent so many pieces of tensors",
    "power": "dies without a word: nobody's connection ends",
    "restart": "is started again",
    "leave": "leaves on purpose at its next step",
    "cut": "cannot reach the others, nor they it",
    "stop": "stands still, and goes on",
    "snap": "lose their control connection",
    "sever": "lose their data connection",
    "suspect": "one takes the other for lost",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """``who``: labels, of agents or servers.

    ``seconds``: how long it lasts; ``pieces``: how many one sends before it falls.
    """

    at: float
    kind: Kind
    who: tuple[int, ...]
    seconds: float = 0.0
    pieces: int = 0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.2f} s" if self.seconds else f" {self.pieces}" if self.pieces else ""
        return f"{self.at:7.3f} {self.kind} {' '.join(map(_short, self.who))}{lasting}: {WORDS[self.kind]}"


def _short(label: int) -> str:
    return str(label) if label < FIRST_SERVER else f"s{label - FIRST_SERVER}"


def draw(rng: random.Random, mix: str, agents: int, span: float, servers: int = 0) -> tuple[Fault, ...]:
    """Up to nine faults in the first ``span`` seconds or so, many of them shortly after another one.

    They strike agents and servers alike; but servers do not leave.

    Raises:
        UnknownName: no such mix.
    """
    if mix not in MIXES:
        raise UnknownName("mix of faults", mix, MIXES)
    kinds, faults, last = MIXES[mix], [], 0.3
    labels = [*range(agents), *range(FIRST_SERVER, FIRST_SERVER + servers)]
    for _ in range(rng.randint(1, 9) if kinds else 0):
        at = rng.choice(
            (rng.uniform(0, span), rng.uniform(0, span), last + rng.expovariate(4), last + 3 * rng.random())
        )
        fault = _draw(rng, rng.choice(kinds), at, agents, labels)
        if fault is not None:
            faults.append(fault)
            last = at
    return tuple(sorted(faults, key=lambda fault: fault.at))


def _draw(rng: random.Random, kind: Kind, at: float, agents: int, labels: list[int]) -> Fault | None:
    everybody = [FOUNDER, *labels]
    match kind:
        case "fall":
            return Fault(at, kind, (rng.choice(labels),), pieces=rng.randint(1, 40))
        case "kill" | "power" | "stop":
            lasting = rng.choice((0.5, 3.0, 8.0)) * (1 + rng.random()) if kind == "stop" else 0.0
            return Fault(at, kind, (rng.choice(everybody),), lasting)
        case "restart":
            return Fault(at, kind, (rng.choice(labels),))
        case "leave":
            return Fault(at, kind, (rng.randrange(agents),))
        case "cut":
            side = tuple(rng.sample(everybody, rng.randint(1, len(labels))))
            return Fault(at, kind, side, rng.choice((0.5, 3.0, 8.0)) * (1 + rng.random()))
        case "snap":
            return Fault(at, kind, tuple(rng.sample(everybody, 2)))
        case _:
            return Fault(at, kind, tuple(rng.sample(labels, 2))) if len(labels) > 1 else None
