"""Searches membership for a schedule of faults that breaks it: many worlds of Views, each from a seed, in virtual time.

Theory of operation. A world holds a coordinator, its agents and what is between them: control connections that keep the
order of messages, and lose them, break, cross and fall silent. Every agent has a toy of a courier, which goes through
rounds of two buckets and knows from whom a finished bucket came. A schedule is a list of faults, drawn from the seed
beforehand, so that a break can be shrunk: faults are left out one by one as long as it still breaks. Whenever a view is
installed the promises are checked (:mod:`stretto.simulate.promises`); when the faults are over and all that crashed is
started again, a view with everybody must come.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

from toys import Fault
from world import World

from stretto.membership.messages import FOUNDER
from stretto.simulate.promises import Broken

CALM = 400.0


def schedule(seed: int) -> tuple[int, list[Fault]]:
    """How many agents, and what happens to them."""
    rng = random.Random(seed ^ 0x5EED)
    size = rng.choice((1, 2, 3, 3, 4, 5))
    labels = [FOUNDER, *range(size)]
    faults = []
    for _ in range(rng.randint(1, 12)):
        at = rng.choice((1.0, 1.0, 3.0, 8.0)) + rng.random() * rng.choice((0.05, 0.5, 10.0))
        kind = rng.choice(("kill", "kill", "restart", "restart", "restart", "snap", "stop", "cut", "suspect"))
        if kind in ("snap", "suspect"):
            among = labels if kind == "snap" else labels[1:]
            if len(among) > 1:
                faults.append(Fault(at, kind, tuple(rng.sample(among, 2))))
        elif kind == "cut":
            side = rng.sample(labels, rng.randint(1, len(labels) - 1))
            faults.append(Fault(at, kind, tuple(side), rng.choice((0.5, 3.0, 8.0)) * (1 + rng.random())))
        elif kind == "stop":
            faults.append(Fault(at, kind, (rng.choice(labels),), rng.choice((0.5, 3.0, 8.0)) * (1 + rng.random())))
        else:
            faults.append(Fault(at, kind, (rng.choice(labels),)))
    if rng.random() < 0.1:
        faults.append(Fault(12 * rng.random(), "leave", (rng.choice(labels[1:]),)))
    return size, sorted(faults, key=lambda fault: fault.at)


def play(seed: int, size: int, faults: list[Fault], log: Callable[[str], None] | None = None) -> World:
    """One world from its beginning to its end.

    Raises:
        Broken: a promise does not hold.
    """
    world = World(seed, size, faults, log=log)
    last = max((fault.at + fault.seconds for fault in faults), default=0.0)
    world.run(last + 0.5)
    world.calm()
    settled = world.run(world.now + CALM, world.settled)
    world.check_history()
    if not settled and world.possible():
        raise Broken("the faults are over, and no view has everybody")
    return world


def attempt(seed: int, size: int, faults: list[Fault]) -> Exception | None:
    try:
        play(seed, size, faults)
    except Exception as e:
        return e
    return None


def shrink(seed: int, size: int, faults: list[Fault]) -> list[Fault]:
    """As few faults as still break it."""
    at = 0
    while at < len(faults):
        fewer = faults[:at] + faults[at + 1 :]
        if attempt(seed, size, fewer) is None:
            at += 1
        else:
            faults = fewer
    return faults


def explore(seeds: range) -> tuple[int, str] | None:
    """The first seed that breaks a promise, and how, in words; None when none does."""
    for seed in seeds:
        size, faults = schedule(seed)
        error = attempt(seed, size, faults)
        if error is not None:
            least = shrink(seed, size, faults)
            error = attempt(seed, size, least) or error
            words = [f"seed {seed}, {size} agents: {type(error).__name__}: {error}", *map(str, least)]
            return seed, "\n".join(words)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int, nargs="?", default=0)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--log", action="store_true", help="play one seed, its schedule shrunk, event by event")
    options = parser.parse_args()
    if options.log:
        size, faults = schedule(options.first)
        play(options.first, size, shrink(options.first, size, faults), print)
        return
    begun = time.monotonic()
    found = explore(range(options.first, options.first + options.count))
    print(found[1] if found else f"{options.count} seeds hold", f"({time.monotonic() - begun:.1f} s)")
    sys.exit(found is not None)


if __name__ == "__main__":
    main()
