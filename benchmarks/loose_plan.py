"""What loose.py compares: tasks, networks and strategies, as data, and the runs that this takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

AGENTS = 4
REFERENCE = "allreduce"
MARKS = 48
"""Steps between two looks at a run; runs are as long as several of these, and strategies exchange in step with them."""
TUNING_SEED = 100
"""Rates are tuned with another seed than those that are compared."""


class Task(Struct, frozen=True, kw_only=True):
    """What is trained: ``batch_size`` samples of an agent in each of ``steps``. ``lrs``: Adam's, the usual first."""

    name: str
    workload: str
    model: str
    batch_size: int
    steps: int
    lrs: tuple[float, ...]
    goal: Literal["accuracy", "loss"]
    """By which the reference's end is to be reached."""
    allowed: float
    """How far the end may be from the reference's: points of accuracy, or a part of the loss in %."""
    tuning: int
    """Steps of a run that tries rates."""
    longer: float
    """What is ours trains so many times more steps without a network, to see when it has what the reference has."""
    every: int
    fragments: int
    overlap: int
    momentum: float
    """What strategies that agree seldom are told: a step of the one task takes a fifth of the other's."""


class Network(Struct, frozen=True, kw_only=True):
    """Between four hosts; without a rate there are no hosts, and agents talk on this machine as fast as they can.

    ``whole``: so many seeds of what exchanges every step are trained to the end here; the others for ``MARKS`` steps,
    which tells what a step takes.
    """

    name: str
    about: str
    rate: str = ""
    delay: str = "0ms"
    loss: str = "0"
    whole: int = 1000


class Contender(Struct, frozen=True, kw_only=True):
    """A strategy, with its ``{outer}`` rate to be tuned among ``outers``, the usual one first, and what the task says.

    ``dense``: it exchanges every step. ``ours``: the goals are for it.
    """

    name: str
    strategy: str
    outers: tuple[float, ...] = (1.0,)
    dense: bool = False
    ours: bool = False


TASKS = (
    Task(
        name="cnn",
        workload="fashion-mnist",
        model="cnn",
        batch_size=16,
        steps=960,
        lrs=(1e-3, 2e-3),
        goal="accuracy",
        allowed=0.5,
        tuning=960,
        longer=2.0,
        every=48,
        fragments=2,
        overlap=20,
        momentum=0.9,
    ),
    Task(
        name="gpt",
        workload="shakespeare",
        model="gpt",
        batch_size=8,
        steps=720,
        lrs=(1e-3, 3e-3),
        goal="loss",
        allowed=2.0,
        tuning=480,
        longer=1.25,
        every=32,
        fragments=4,
        overlap=6,
        momentum=0.8,
    ),
)
INFINITE = Network(name="infinite", about="no network: one machine")
NETWORKS = (
    INFINITE,
    Network(name="1gbit", about="1 gbit, 0.2 ms", rate="1gbit", delay="200us"),
    Network(name="100mbit", about="100 mbit, 5 ms", rate="100mbit", delay="5ms", whole=0),
    Network(name="20mbit", about="20 mbit, 40 ms", rate="20mbit", delay="40ms", whole=0),
    Network(name="lossy", about="10 mbit, 50 ms, 1 % loss", rate="10mbit", delay="50ms", loss="1%", whole=0),
)
CONTENDERS = (
    Contender(name=REFERENCE, strategy="allreduce", dense=True),
    Contender(
        name="streaming int4",
        strategy="streaming_diloco({every}, {fragments}, {overlap}, outer_lr={outer}, outer_momentum={momentum}, "
        "codec=int4)",
        outers=(0.7, 0.4, 1.0),
        ours=True,
    ),
    Contender(
        name="diloco int4",
        strategy="diloco({every}, outer_lr={outer}, outer_momentum={momentum}, codec=int4)",
        outers=(0.7,),
    ),
)


class Plan(Struct, frozen=True, kw_only=True):
    """One run; equal plans are the same run, wherever they come from."""

    task: str
    network: str
    contender: str
    strategy: str
    seed: int
    lr: float
    steps: int

    def __str__(self) -> str:
        return f"{self.task}, {self.network}, {self.contender}, seed {self.seed} ({self.strategy}, lr {self.lr:g})"


class Rates(Struct, frozen=True):
    """What was chosen for a strategy on a task."""

    lr: float
    outer: float


def usual(task: Task, contender: Contender) -> Rates:
    return Rates(task.lrs[0], contender.outers[0])


def scaled(steps: int, scale: float) -> int:
    """Steps of a shorter, or longer, trial."""
    return MARKS * max(1, round(steps * scale / MARKS))


def grid(task: Task, contender: Contender, scale: float) -> list[tuple[Rates, Plan]]:
    """What tuning tries."""
    rates = [Rates(lr, outer) for lr in task.lrs for outer in contender.outers]
    return [(r, _plan(task, INFINITE, contender, r, TUNING_SEED, scaled(task.tuning, scale))) for r in rates]


def compared(task: Task, contender: Contender, rates: Rates, seeds: int, scale: float) -> Iterator[Plan]:
    """All runs of a strategy on a task, network by network."""
    for network in NETWORKS:
        for seed in range(seeds):
            whole = not contender.dense or seed < network.whole
            steps = task.steps * (task.longer if contender.ours and network is INFINITE else 1)
            yield _plan(task, network, contender, rates, seed, scaled(round(steps), scale) if whole else MARKS)


def _plan(task: Task, network: Network, contender: Contender, rates: Rates, seed: int, steps: int) -> Plan:
    return Plan(
        task=task.name,
        network=network.name,
        contender=contender.name,
        strategy=contender.strategy.format(
            outer=rates.outer,
            every=task.every,
            fragments=task.fragments,
            overlap=task.overlap,
            momentum=task.momentum,
        ),
        seed=seed,
        lr=rates.lr,
        steps=steps,
    )
