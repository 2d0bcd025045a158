"""What goes into a training run and what comes out: the job, an agent's news and outcome, and the one result of all."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import msgspec
import torch


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every agent is told to do. ``batch_size`` is an agent's; ``folder`` is shared with the launcher;
    ``tests``: after every epoch too, and not only at the end."""

    workload: str
    model: str
    strategy: str
    link: str
    batch_size: int
    seed: int
    folder: str
    data: str | None = None
    epochs: int | None = None
    seconds: float | None = None
    target: float | None = None
    tests: bool = True
    threads: int = 1


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One agent, a few times a second. ``loss`` is its last batch's; ``accuracy`` the last test of all agents.

    ``rank`` is its number in the launch, ``agents`` how many there are now; ``samples`` it has trained itself.
    """

    rank: int
    agents: int
    step: int
    epoch: int
    samples: int
    seconds: float
    loss: float
    accuracy: float | None
    bytes_sent: int
    bytes_received: int
    waiting: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's end. ``trained``: samples by all, as the ledger's ``proof`` says; ``samples``: by this life of it.

    ``rmse`` and ``floor`` are the :class:`Result`'s.
    """

    rank: int
    agents: int
    steps: int
    samples: int
    trained: int
    proof: str
    seconds: float
    accuracy: float
    loss: float
    rmse: float | None = None
    floor: float | None = None
    bytes_sent: int
    bytes_received: int
    wire_sent: int
    wire_received: int
    waiting: float
    sent_training: int
    codec_seconds: float
    dense: int
    coded: int
    staleness: dict[int, int] = {}
    rate: float
    digest: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One training run. Lists have one entry an agent, by rank.

    Attributes:
        batch_size: samples of one agent in a step.
        steps, samples: optimiser steps; samples trained by all agents together.
        seconds: of training, without loading and testing.
        accuracy, loss: on the test data, at the end.
        rmse: the root of the loss, where that is a mean of squares; null else.
        floor, ratio: what the truth itself would have in its place, and how many times that ``rmse`` is; null where
            nobody knows.
        reached: whether the asked accuracy was reached; null when none was asked.
        proof: what the ledger proves of the samples: each exactly once an epoch, whoever came and went.
        finished: the agents that are in the lists: their numbers in the launch.
        bytes_sent, bytes_received: counted by stretto, all frames included.
        wire_sent, wire_received: counted by the operating system on the interface or socket.
        sent_training: of bytes_sent those after the first weights were spread.
        codec_seconds: CPU seconds in codecs.
        dense, coded: bytes that codecs were given, and that they made of them; 0 where there is no codec.
        staleness: with servers, how many pushes came how many pushes late, of all agents.
        rate: bytes a second that the agents found their network to carry.
        computing, waiting: seconds; waiting is for other agents, computing is the rest.
        digests: of the weights; equal digests are equal bits.
    """

    workload: str
    model: str
    strategy: str
    agents: int
    link: str
    seed: int
    batch_size: int
    steps: int
    samples: int
    seconds: float
    accuracy: float
    loss: float
    rmse: float | None
    floor: float | None
    ratio: float | None
    reached: bool | None
    proof: str
    finished: list[int]
    bytes_sent: list[int]
    bytes_received: list[int]
    wire_sent: list[int]
    wire_received: list[int]
    sent_training: list[int]
    codec_seconds: list[float]
    dense: list[int]
    coded: list[int]
    staleness: dict[int, int]
    rate: float
    computing: list[float]
    waiting: list[float]
    digests: list[str]
    versions: dict[str, str]
    machine: dict[str, str | int]

    @property
    def speed(self) -> float:
        """Samples a second of all agents together."""
        return self.samples / self.seconds


def combine(job: Job, outcomes: Sequence[Outcome]) -> Result:
    """The result of a job from all its agents' outcomes, by rank."""
    first, seconds = outcomes[0], max(o.seconds for o in outcomes)
    return Result(
        workload=job.workload,
        model=job.model,
        strategy=job.strategy,
        agents=len(outcomes),
        link=job.link,
        seed=job.seed,
        batch_size=job.batch_size,
        steps=first.steps,
        samples=first.trained,
        seconds=seconds,
        accuracy=first.accuracy,
        loss=first.loss,
        rmse=first.rmse,
        floor=first.floor,
        ratio=first.rmse / first.floor if first.rmse and first.floor else None,
        reached=None if job.target is None else first.accuracy >= job.target,
        proof=first.proof,
        finished=[o.rank for o in outcomes],
        bytes_sent=[o.bytes_sent for o in outcomes],
        bytes_received=[o.bytes_received for o in outcomes],
        wire_sent=[o.wire_sent for o in outcomes],
        wire_received=[o.wire_received for o in outcomes],
        sent_training=[o.sent_training for o in outcomes],
        codec_seconds=[o.codec_seconds for o in outcomes],
        dense=[o.dense for o in outcomes],
        coded=[o.coded for o in outcomes],
        staleness=first.staleness,
        rate=first.rate,
        computing=[max(0.0, o.seconds - o.waiting) for o in outcomes],
        waiting=[o.waiting for o in outcomes],
        digests=[o.digest for o in outcomes],
        versions=versions(),
        machine=machine(),
    )


def versions() -> dict[str, str]:
    """Of everything that can change a result."""
    try:
        ours = version("stretto")
    except PackageNotFoundError:
        ours = "not installed"
    return {"stretto": ours, "torch": str(torch.__version__), "python": platform.python_version()}


def machine() -> dict[str, str | int]:
    """Where a result was measured; nothing that names the host."""
    return {"system": platform.platform(), "processor": platform.machine(), "cores": len(os.sched_getaffinity(0))}
