"""Many simulated runs, each from a seed; one that breaks a promise is shrunk to the fewest faults that break it."""

from __future__ import annotations

import gc
import multiprocessing
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

from stretto.core import Strategy
from stretto.errors import UnknownName
from stretto.simulate.faults import Fault, draw
from stretto.simulate.world import World
from stretto.text import names, parse

SPAN: Final = 4.0
"""Seconds of a run in which most faults strike; without any it takes about as long."""
_SHORT: Final = {
    "asp": "asp(slot=16)",
    "async_easgd": "async_easgd(2, settle=3)",
    "async_gossip": "async_gossip(settle=3)",
    "bsp": "bsp(slot=16)",
    "decoupled_diloco": "decoupled_diloco(2, settle=4)",
    "delayed": "delayed",
    "delayed_nesterov": "delayed_nesterov(2, slot=16)",
    "demo": "demo",
    "diloco": "diloco(2)",
    "eager_diloco": "eager_diloco(3)",
    "easgd": "easgd(2)",
    "gossip_sgd": "gossip_sgd(settle=3)",
    "hierarchical_local_sgd": "hierarchical_local_sgd(1, 3)",
    "local_sgd": "local_sgd(3)",
    "noloco": "noloco(2, settle=3)",
    "post_local_sgd": "post_local_sgd(2, 3)",
    "ssp": "ssp(1, slot=16)",
    "sparse_loco": "sparse_loco(2, 0.3)",
    "push_sum": "push_sum(random_push, settle=3)",
    "streaming_diloco": "streaming_diloco(4, 2, 2)",
}
"""With windows so short that a run has many, and slots so small that there are several."""
_LOT: Final = 25
"""Seeds that a process takes at a time; it collects its garbage after them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is drawn from: the mix of faults, and the least and most agents; so many ``servers`` are beside them."""

    mix: str = "storm"
    fewest: int = 1
    most: int = 5
    servers: int = 0


@dataclass(frozen=True, slots=True)
class Break:
    """A broken promise: why, and the fewest faults that break it."""

    seed: int
    strategy: str
    agents: int
    why: str
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of some runs of one strategy.

    ``outcomes``: in how many the training ``ended``, and what kept it from that in the others.
    ``torn``: agents that left in mid-change of a view and have one step more than the others.
    """

    strategy: str
    runs: int
    outcomes: dict[str, int]
    steps: int
    faults: dict[str, int]
    torn: int
    breaks: tuple[Break, ...]


def listed() -> list[Strategy]:
    """Every strategy by its name, and ``allreduce`` with every topology that is a graph.

    Those that exchange drifts do it as ``allreduce`` does, bucket by bucket: one topology shows what is theirs.
    """
    found = []
    for name in names("strategy"):
        if name in _SHORT:
            found.append(parse(_SHORT[name], "strategy"))
            continue
        texts = [f"{name}(topology={topology})" for topology in names("topology") if topology != "native"]
        try:
            found += [parse(text, "strategy") for text in texts]
        except UnknownName:
            found.append(parse(name, "strategy"))
    return found


def coded() -> list[Strategy]:
    """All-reduce with every codec by its name, and with feedback around what it is made for."""
    texts = [*names("codec"), *(f"feedback({codec})" for codec in ("sign", "lowrank(1)", "topk(0.3)+int8"))]
    return [parse(f"allreduce(codec={text})", "strategy") for text in texts if text != "identity"]


def schedule(seed: int, setting: Setting) -> tuple[int, tuple[Fault, ...]]:
    """How many agents, and what happens to them."""
    rng = random.Random(seed ^ 0x5EED)
    size = rng.choice(range(setting.fewest, setting.most + 1))
    return size, draw(rng, setting.mix, size, SPAN, setting.servers)


def play(
    seed: int,
    strategy: Strategy,
    size: int,
    faults: Sequence[Fault],
    log: Callable[[str], None] | None = None,
    *,
    servers: int = 0,
) -> World:
    """One run.

    Raises:
        Broken: a promise does not hold.
    """
    world = World(seed, strategy, size, faults, log, servers=servers)
    world.run()
    return world


def attempt(seed: int, strategy: Strategy, size: int, faults: Sequence[Fault], servers: int = 0) -> Exception | None:
    try:
        play(seed, strategy, size, faults, servers=servers)
    except Exception as e:
        return e
    return None


def shrink(seed: int, strategy: Strategy, size: int, faults: tuple[Fault, ...], servers: int = 0) -> tuple[Fault, ...]:
    """As few faults as still break it."""
    at = 0
    while at < len(faults):
        fewer = faults[:at] + faults[at + 1 :]
        if attempt(seed, strategy, size, fewer, servers) is None:
            at += 1
        else:
            faults = fewer
    return faults


def examine(seeds: range, strategy: Strategy, setting: Setting) -> Tally:
    """These seeds, one after another."""
    steps = torn = 0
    struck: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    breaks = []
    with _without_collecting():
        for seed in seeds:
            size, faults = schedule(seed, setting)
            struck.update(fault.kind for fault in faults)
            try:
                world = play(seed, strategy, size, faults, servers=setting.servers)
            except Exception as e:
                breaks.append(_broken(seed, strategy, size, faults, e, setting.servers))
                continue
            outcomes[world.outcome] += 1
            steps, torn = steps + world.steps, torn + world.torn
    return Tally(str(strategy), len(seeds), dict(outcomes), steps, dict(struck), torn, tuple(breaks))


def _broken(
    seed: int, strategy: Strategy, size: int, faults: tuple[Fault, ...], error: Exception, servers: int
) -> Break:
    least = shrink(seed, strategy, size, faults, servers)
    error = attempt(seed, strategy, size, least, servers) or error
    return Break(seed, str(strategy), size, f"{type(error).__name__}: {error}", tuple(map(str, least)))


@contextmanager
def _without_collecting() -> Iterator[None]:
    """A run leaves nothing but cycles, and looking for them all the time, among all there is, costs a fifth of it."""
    was = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        if was:
            gc.enable()


def storm(strategies: Sequence[Strategy], seeds: range, setting: Setting, jobs: int = 1) -> Iterator[Tally]:
    """All seeds with each of the strategies, in lots that ``jobs`` processes play; a tally a lot, as they come."""
    lots = [range(at, min(at + _LOT, seeds.stop)) for at in range(seeds.start, seeds.stop, _LOT)]
    work = [(lot, strategy, setting) for lot in lots for strategy in strategies]
    if jobs == 1:
        yield from map(_lot, work)
        return
    gc.freeze()
    with multiprocessing.get_context("fork").Pool(jobs, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(_lot, work)


def _lot(work: tuple[range, Strategy, Setting]) -> Tally:
    return examine(*work)


def trace(seed: int, strategy: Strategy, setting: Setting, say: Callable[[str], None]) -> Exception | None:
    """Play one seed event by event, its faults shrunk where it breaks a promise."""
    size, faults = schedule(seed, setting)
    if attempt(seed, strategy, size, faults, setting.servers) is not None:
        faults = shrink(seed, strategy, size, faults, setting.servers)
    for fault in faults:
        say(str(fault))
    try:
        play(seed, strategy, size, faults, say, servers=setting.servers)
    except Exception as e:
        return e
    return None


def merged(tallies: Sequence[Tally]) -> list[Tally]:
    """One for each strategy."""
    by: dict[str, list[Tally]] = {}
    for tally in tallies:
        by.setdefault(tally.strategy, []).append(tally)
    return [_sum(text, of) for text, of in sorted(by.items())]


def _sum(strategy: str, tallies: list[Tally]) -> Tally:
    return Tally(
        strategy,
        sum(t.runs for t in tallies),
        _added(t.outcomes for t in tallies),
        sum(t.steps for t in tallies),
        _added(t.faults for t in tallies),
        sum(t.torn for t in tallies),
        tuple(sorted((b for t in tallies for b in t.breaks), key=lambda b: b.seed)),
    )


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
