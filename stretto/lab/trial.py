"""A trial: a workload is trained on the hosts of a laboratory while a storm blows; one result says what came of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from stretto.lab import faults
from stretto.lab.faults import Fault, Kind
from stretto.lab.fleet import Fleet
from stretto.lab.laboratory import Laboratory
from stretto.lab.storm import Played, Say, play, to_the_end
from stretto.lab.story import Account, tell
from stretto.lab.summary import Summary, summaries
from stretto.trace import read
from stretto.workloads.folder import outcomes
from stretto.workloads.result import Job, Outcome

ENDING: Final = 120.0
"""Seconds that a training may last beyond twice its time."""


class Place(Struct, frozen=True, kw_only=True):
    """Where a trial takes place: a laboratory, and how many agents each of its hosts has."""

    hosts: int = 4
    agents_per_host: int = 1
    rate: str = "100mbit"
    delay: str = "5ms"
    loss: str = "0"
    queue: str = "1MiB"
    congestion: str | None = None

    def lab(self) -> Laboratory:
        link = {"rate": self.rate, "delay": self.delay, "loss": self.loss, "queue": self.queue}
        return Laboratory(self.hosts, **link, congestion=self.congestion)

    @property
    def labels(self) -> list[range]:
        """Of the agents on each host."""
        return [range(h * self.agents_per_host, (h + 1) * self.agents_per_host) for h in range(self.hosts)]


class Weather(Struct, frozen=True, kw_only=True):
    """What a trial is exposed to. ``calm`` (seconds) goes before the storm, and is what it is compared with; ``after``
    it whoever was hit last can come back. For ``regular`` see :func:`stretto.lab.faults.storm`."""

    seed: int = 0
    per_hour: float = 125.0
    seconds: float = 1200.0
    calm: float = 60.0
    after: float = 20.0
    mix: Mapping[Kind, float] = msgspec.field(default_factory=lambda: dict(faults.MIX))
    coordinator: bool = True
    regular: bool = False

    def faults(self, hosts: Sequence[Sequence[int]]) -> tuple[Fault, ...]:
        return faults.storm(
            seed=self.seed,
            per_hour=self.per_hour,
            seconds=self.seconds,
            hosts=hosts,
            mix=self.mix,
            coordinator=self.coordinator,
            regular=self.regular,
        )

    @property
    def whole(self) -> float:
        """Seconds of training."""
        return self.calm + self.seconds + self.after


class Result(Struct, frozen=True, kw_only=True):
    """What a trial came to.

    Attributes:
        faults: by kind, with the median and the worst of what followed, in seconds.
        proofs: what the agents' ledgers prove, each text once: equal ledgers, one text.
        finished: labels of the agents that ended with the model; digests are theirs.
        accuracy: on the test data.
    """

    place: Place
    weather: Weather
    strategy: str
    faults: list[Summary]
    account: Account
    proofs: list[str]
    finished: list[int]
    digests: list[str]
    accuracy: float
    steps: int

    @property
    def equal(self) -> bool:
        return len(set(self.digests)) == 1


def run(
    job: Job, place: Place, weather: Weather, folder: Path, say: Say, environ: Mapping[str, str] | None = None
) -> Result:
    """Train ``job`` at ``place`` in ``weather``; without epochs of its own its time is the weather's.

    It is tested at the end only: while all test, which takes seconds, nobody waits for anybody, but no round is
    finished either, and whoever was hit just then would seem to be what holds the others up.

    Args:
        folder: an empty one, for the agents; their trace is left there, and what the hosts printed.
        say: hears of every fault.
        environ: for the agents, beside our own.

    Raises:
        UsageError: there can be no laboratory here, or no such storm.
        ScriptFailed: the training failed, did not begin, or did not end.
    """
    schedule, trace = weather.faults(place.labels), folder / "trace.jsonl"
    seconds = weather.whole if job.epochs is None else None
    job = msgspec.structs.replace(job, folder=str(folder), seconds=seconds, tests=False)
    command = [sys.executable, "-m", "stretto.workloads.job", msgspec.json.encode(job).decode()]
    env = {**(environ or {}), "STRETTO_TRACE": str(trace)}
    say(f"{weather.calm:.0f} s of calm, then {len(schedule)} faults in {weather.seconds:.0f} s")
    with place.lab() as lab, Fleet(lab, command, folder, per_host=place.agents_per_host, environ=env) as fleet:
        played = play(fleet, trace, schedule, calm=weather.calm, seconds=weather.seconds, say=say)
        to_the_end(fleet, weather.whole + ENDING)
        return _result(job, place, weather, fleet, trace, played)


def _result(job: Job, place: Place, weather: Weather, fleet: Fleet, trace: Path, played: Played) -> Result:
    account = tell(list(read(trace)), played.deeds, agents=fleet.agents, calm=played.calm, until=played.until)
    left: list[Outcome] = list(outcomes(fleet.folder, fleet.agents))
    return Result(
        place=place,
        weather=weather,
        strategy=job.strategy,
        faults=summaries(account.aftermaths),
        account=account,
        proofs=sorted({outcome.proof for outcome in left}),
        finished=[outcome.rank for outcome in left],
        digests=[outcome.digest for outcome in left],
        accuracy=left[0].accuracy if left else 0.0,
        steps=max((outcome.steps for outcome in left), default=0),
    )
