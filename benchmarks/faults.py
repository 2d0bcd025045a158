"""What deaths, stops and pulled cables cost a training: ``python benchmarks/faults.py [ROW ...]``. Needs root.

Every ROW trains fashion-mnist's CNN with four agents on four hosts of a laboratory, and can be measured alone; without
any, all are: about three hours. Numbers go to docs/results/faults.json, and docs/results/faults.md is written from all
that is there, with the ``remarks`` that stand beside them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from stretto import workloads
from stretto.errors import StrettoError
from stretto.lab import trial
from stretto.lab.story import Account
from stretto.lab.summary import spread
from stretto.lab.trial import Place, Result, Weather
from stretto.workloads.result import Job, machine, versions

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NUMBERS, PAGE = RESULTS / "faults.json", RESULTS / "faults.md"
KILLS = 24
SEEDS = (0, 1, 2)
QUIET = Weather(per_hour=0, calm=30, seconds=60, after=0, coordinator=False)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the table; ``reached`` is null where nothing was to be reached."""

    event: str
    goal: str
    measured: str
    reached: bool | None
    command: str


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What is trained, and for how much of everything: 1 is what is published."""

    workload: str
    model: str
    data: str | None
    strategy: str
    scale: float
    place: Place

    def job(self, seed: int = 0, epochs: int | None = None) -> Job:
        known = workloads.get(self.workload)
        agents = self.place.hosts * self.place.agents_per_host
        return Job(
            workload=self.workload,
            model=self.model,
            strategy=self.strategy,
            link="tcp",
            batch_size=known.batch_of(agents),
            seed=seed,
            folder="",
            data=self.data,
            epochs=epochs,
        )

    def count(self, whole: int) -> int:
        return max(2, round(whole * self.scale))

    def minutes(self, whole: float) -> float:
        """In seconds."""
        return 60 * whole * self.scale


def run(job: Job, place: Place, weather: Weather, environ: Mapping[str, str] | None = None) -> Result:
    with TemporaryDirectory(prefix="stretto-faults-") as folder:
        return trial.run(job, place, weather, Path(folder), lambda line: print(f"  {line}", flush=True), environ)


def kills(s: Setting) -> Iterator[Row]:
    """A worker is killed every 15 s."""
    count = s.count(KILLS)
    weather = Weather(per_hour=240, seconds=15 * count, calm=20, mix={"kill": 1}, coordinator=False, regular=True)
    found = run(s.job(), s.place, weather)
    after = found.account.aftermaths
    yield limit("kill -9 of a worker → next step of the survivors", [a.next_commit for a in after], 0.5, 1.0)
    yield limit("killed worker back in the training, start of its process included", [a.back for a in after], None, 10)
    yield nothing_lost("kills", [found])


def coordinator(s: Setting) -> Iterator[Row]:
    """One run for each kill: a coordinator has no second life."""
    weather = Weather(per_hour=3600, seconds=1, calm=8, after=12)
    found = [run(s.job(seed), s.place, weather) for seed in range(s.count(20))]
    pauses = [a.pause for one in found for a in one.account.aftermaths]
    yield limit("kill -9 of the coordinator: pause", pauses, None, 3)
    yield nothing_lost("the coordinator's death", found)


def cut(s: Setting) -> Iterator[Row]:
    """A cable is pulled every 20 s; then half an hour of a bad but whole network."""
    count = s.count(20)
    weather = Weather(per_hour=180, seconds=20 * count, calm=20, mix={"cut": 1}, coordinator=False, regular=True)
    found = run(s.job(), s.place, weather)
    yield limit("cable cut → noticed", [a.noticed for a in found.account.aftermaths], None, 3)
    place = msgspec.structs.replace(s.place, rate="20mbit", delay="40ms", loss="0.5%")
    still = msgspec.structs.replace(QUIET, seconds=s.minutes(30))
    bad = run(s.job(), place, still)
    alarms = len(bad.account.false_alarms)
    yield row(
        f"false alarms in {still.seconds / 60:.0f} minutes at 20 mbit, 40 ms, 0.5 % loss", "0", str(alarms), alarms == 0
    )
    yield nothing_lost("cuts, and at 0.5 % loss", [found, bad])


def storm(s: Setting) -> Iterator[Row]:
    """125 faults an hour."""
    found = run(s.job(), s.place, Weather(seconds=s.minutes(20)))
    account, faults = found.account, sum(kind.count for kind in found.faults)
    yield share(f"storm, {faults} faults: living agents that take part in a step", account.taking_part, 0.90)
    yield share("storm: throughput, of the living share", account.throughput, 0.95)
    yield limit("storm, a worker is killed → next step of the others", _of("kill", account, "next_commit"), 0.5, 1.0)
    yield limit("storm, a worker is killed → it is back in the training", _of("kill", account, "back"), None, 10)
    yield limit("storm, a cable is cut → noticed", _of("cut", account, "noticed"), None, 3)
    yield nothing_lost("the storm", [found])


def _of(kind: str, account: Account, what: str) -> list[float | None]:
    return [getattr(a, what) for a in account.aftermaths if a.deed.kind == kind]


def slow(s: Setting) -> Iterator[Row]:
    """The storm, and calm, at 10 mbit."""
    place = msgspec.structs.replace(s.place, rate="10mbit")
    for name, weather in (
        ("10 mbit, calm", msgspec.structs.replace(QUIET, seconds=s.minutes(5))),
        ("10 mbit, the storm", Weather(seconds=s.minutes(20))),
    ):
        try:
            found = run(s.job(), place, weather)
        except StrettoError as error:
            yield row(f"{name}: completes", "yes", str(error), False)
            continue
        yield row(f"{name}: completes", "yes", f"yes, {found.account.steps:,} steps", True)
        yield nothing_lost(name, [found])


def checkpoint(s: Setting) -> Iterator[Row]:
    """With checkpoints and without, in turn."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    weather = msgspec.structs.replace(QUIET, seconds=s.minutes(2))
    for _ in range(s.count(4)):
        for saving, seen in rates.items():
            with TemporaryDirectory(prefix="stretto-checkpoints-") as folder:
                env = {"STRETTO_CHECKPOINT": folder, "STRETTO_CHECKPOINT_EVERY": "30"} if saving else {}
                seen.append(run(s.job(), s.place, weather, env).account.rate)
                written = any(Path(folder).iterdir())
            if saving and not written:
                yield row("checkpoint every 30 s: lost throughput", "under 2 %", "no checkpoint was written", False)
                return
    lost = 1 - statistics.median(rates[True]) / statistics.median(rates[False])
    yield row("checkpoint every 30 s: lost throughput", "under 2 %", f"{100 * lost:.1f} %", lost < 0.02)


def accuracy(s: Setting) -> Iterator[Row]:
    """The same epochs in a storm and without, for three seeds."""
    pairs: list[tuple[Result, Result]] = []
    for seed in SEEDS:
        job = s.job(seed, epochs=s.count(10))
        quiet = run(job, s.place, msgspec.structs.replace(QUIET, seconds=3600))
        pairs.append((quiet, run(job, s.place, Weather(seed=seed, seconds=3600, calm=10))))
    apart = [100 * (stormy.accuracy - quiet.accuracy) for quiet, stormy in pairs]
    mean = statistics.fmean(apart)
    texts = ", ".join(f"{100 * q.accuracy:.2f} → {100 * w.accuracy:.2f}" for q, w in pairs)
    yield row(
        "accuracy after the storm, against a quiet run of the same samples; mean of 3 seeds",
        "within 0.5 points",
        f"{mean:+.2f} points ({texts} %)",
        abs(mean) <= 0.5,
    )
    yield nothing_lost("these runs", [one for pair in pairs for one in pair])


ROWS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "kills": kills,
    "coordinator": coordinator,
    "cut": cut,
    "storm": storm,
    "10mbit": slow,
    "checkpoint": checkpoint,
    "accuracy": accuracy,
}


def limit(event: str, values: Sequence[float | None], median: float | None, worst: float) -> Row:
    found, never = spread(values), list(values).count(None)
    goal = f"under {worst:g} s" if median is None else f"median under {median:g} s, worst under {worst:g} s"
    if found is None:
        return row(event, goal, f"never, {never} times", False)
    missing = f"; never: {never}" if never else ""
    return row(
        event,
        goal,
        f"median {found[0]:.2f} s, worst {found[1]:.2f} s of {len(values) - never}{missing}",
        not never and found[1] < worst and (median is None or found[0] < median),
    )


def share(event: str, value: float, least: float) -> Row:
    return row(event, f"at least {100 * least:g} %", f"{100 * value:.1f} %", value >= least)


def nothing_lost(what: str, found: Sequence[Result]) -> Row:
    """Ledgers that agree on every sample, weights that agree in every bit, and no round that ended differently."""
    proven = all(len(one.proofs) == 1 for one in found)
    equal = all(one.equal and not one.account.torn for one in found)
    return row(
        f"samples lost or repeated in {what}",
        "0 and 0, digests equal",
        f"{'0 and 0' if proven else 'not proven'}; digests {'equal' if equal else 'DIFFER'}",
        proven and equal,
    )


def row(event: str, goal: str, measured: str, reached: bool | None) -> Row:
    return Row(event=event, goal=goal, measured=measured, reached=reached, command="")


def page(measured: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# What faults cost",
        "",
        "Written by `make faults` (`benchmarks/faults.py`); a line is measured alone by the command beside it. Four",
        "agents on four hosts of a laboratory (`stretto lab`), 100 mbit and 5 ms one way unless a line says otherwise,",
        "on one machine. A kill is SIGKILL to all processes of an agent. A step is the commit of a round in which",
        "gradients were averaged; after a kill, the next step is the first one in a view without the process that was",
        "killed. A victim that was hit again before it was back counts as never back. An agent is living except from",
        "its kill to the start of its new process, and while it is stopped or cut off.",
        "",
        "| event | reach | measured | reached | command |",
        "|---|---|---|---|---|",
    ]
    for name in ROWS:
        for r in measured.get(name, {}).get("rows", []):
            reached = {True: "yes", False: "no", None: ""}[r["reached"]]
            lines.append(f"| {r['event']} | {r['goal']} | {r['measured']} | {reached} | `{r['command']}` |")
    lines += ["", "Where and when:", ""]
    for name in ROWS:
        if name in measured:
            about = ", ".join(f"{key} {value}" for key, value in measured[name]["machine"].items())
            lines.append(f"- {name}: {measured[name]['day']}, {measured[name]['seconds']:.0f} s, {about}")
    remarks = measured.get("remarks", [])
    lines += ["", "Remarks:", "", *(f"- {remark}" for remark in remarks)] if remarks else []
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--workload", default="fashion-mnist")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--data", help="the folder of the data; else they are fetched")
    parser.add_argument("--strategy", default="allreduce")
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--delay", default="5ms")
    parser.add_argument("--scale", type=float, default=1.0, help="of counts and times; less than 1 to try this out")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where faults.json and faults.md are written")
    given = parser.parse_args()
    for name in given.rows:
        if name not in ROWS:
            parser.error(f"there is no row {name}; there are {', '.join(ROWS)}")
    try:
        settle(given, given.rows or list(ROWS))
    except StrettoError as error:
        sys.exit(f"stretto: {error}")


def settle(given: argparse.Namespace, names: Sequence[str]) -> None:
    """Measure, and write after every row: what was measured stays, whatever the next one comes to."""
    numbers, text = given.folder / NUMBERS.name, given.folder / PAGE.name
    found = workloads.get(given.workload).find(Path(given.data) if given.data else None)
    setting = Setting(
        workload=given.workload,
        model=given.model,
        data=str(found) if found else None,
        strategy=given.strategy,
        scale=given.scale,
        place=Place(rate=given.rate, delay=given.delay),
    )
    measured: dict[str, Any] = msgspec.json.decode(numbers.read_bytes()) if numbers.exists() else {}
    for name in names:
        begin, rows = time.monotonic(), list[Row]()
        print(f"{name}:", flush=True)
        for r in ROWS[name](setting):
            rows.append(msgspec.structs.replace(r, command=command(name, given)))
            print(f"{r.event}: {r.measured}; goal {r.goal}", flush=True)
        measured[name] = {
            "rows": msgspec.to_builtins(rows),
            "day": time.strftime("%Y-%m-%d"),
            "seconds": time.monotonic() - begin,
            "machine": versions() | machine(),
        }
        numbers.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=2) + b"\n")
        text.write_text(page(measured), encoding="utf-8")


def command(name: str, given: argparse.Namespace) -> str:
    """What measures one row again: options that are not as usual, and no paths."""
    usual = {"workload": "fashion-mnist", "model": "cnn", "strategy": "allreduce", "rate": "100mbit", "delay": "5ms"}
    options = {key: getattr(given, key) for key, value in usual.items() if getattr(given, key) != value}
    if given.scale != 1:
        options["scale"] = f"{given.scale:g}"
    return " ".join(["python benchmarks/faults.py", name, *(f"--{key} {value}" for key, value in options.items())])


if __name__ == "__main__":
    main()
