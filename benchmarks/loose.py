"""Loose synchrony on slow networks: ``python benchmarks/loose.py [--tune] [--only TEXT ...]``. Needs root.

Trains fashion-mnist's CNN and a character GPT on shakespeare with four agents, with every strategy of ``loose_plan.py``
on every network there: a host each in a laboratory, or no network at all. All see equally many samples. First what each
seed learns without a network, then how long that takes with one.

Every finished run is a line of loose.jsonl, and a run that is there is not made again: stop it and go on as you like.
docs/results/loose.json and loose.md are written from all that is there; ``--page`` writes them alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from loose_page import Measured, write
from loose_plan import CONTENDERS, NETWORKS, TASKS, TUNING_SEED, Contender, Plan, Rates, Task, compared, grid, usual
from loose_runs import Run, Tester, carry_out

from stretto import workloads
from stretto.errors import StrettoError

RESULTS = Path(__file__).parents[1] / "docs" / "results"
RUNS = "loose.jsonl"
SEEDS = 3


class Runs:
    """What was run so far, by plan; a line each in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_bytes().splitlines() if path.exists() else []
        self.found = {run.plan: run for run in (msgspec.json.decode(line, type=Run) for line in lines)}

    def has(self, plan: Plan) -> bool:
        """Whether it need not be run; in tuning, that a rate fails is a result."""
        return plan in self.found and bool(self.found[plan].marks or plan.seed == TUNING_SEED)

    def add(self, run: Run) -> None:
        self.found[run.plan] = run
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(run) + b"\n")

    def known(self, task: Task) -> dict[str, tuple[float, float]]:
        """Accuracy and loss by digest."""
        marks = (mark for plan, run in self.found.items() if plan.task == task.name for mark in run.marks)
        return {mark.digest: (mark.accuracy, mark.loss) for mark in marks}


def tuned(runs: Runs, task: Task, contender: Contender, scale: float) -> Rates:
    """The rates with the least loss on the test data at the end; the usual ones where nothing was tried."""
    tried = [(runs.found[plan], rates) for rates, plan in grid(task, contender, scale) if plan in runs.found]
    ends = [(run.end.loss, rates) for run, rates in tried if run.marks]
    return min(ends, key=lambda end: end[0])[1] if ends else usual(task, contender)


def make(plans: Iterable[Plan], runs: Runs, task: Task, given: argparse.Namespace) -> None:
    """Those that are wanted, and not there yet."""
    wanted = [p for p in plans if not runs.has(p) and all(part in str(p) for part in given.only)]
    if given.list:
        print(*(f"{plan}, {plan.steps} steps" for plan in wanted), sep="\n")
    if given.list or not wanted:
        return
    networks = {network.name: network for network in NETWORKS}
    data = workloads.get(task.workload).find(given.data)
    tester = Tester(task, data, runs.known(task))
    for plan in wanted:
        begin = time.monotonic()
        run = carry_out(plan, task, networks[plan.network], data, tester, given.congestion)
        runs.add(run)
        print(f"{plan}: {summary(run)} [{time.monotonic() - begin:.0f} s]", flush=True)


def summary(run: Run) -> str:
    if not run.marks:
        return f"failed: {run.error}"
    end = run.end
    return (
        f"{end.step} steps in {end.seconds:.1f} s, {100 * (1 - end.waiting / end.seconds):.0f} % computing, "
        f"{end.sent / 1e6:.2f} MB sent, accuracy {100 * end.accuracy:.2f} %, loss {end.loss:.4f}"
    )


def tune(runs: Runs, given: argparse.Namespace) -> None:
    for task in TASKS:
        make((plan for c in CONTENDERS for _, plan in grid(task, c, given.scale)), runs, task, given)


def compare(runs: Runs, given: argparse.Namespace) -> None:
    """Strategies in turn, so that what the machine does meanwhile meets all alike."""
    for task in TASKS:
        each = [compared(task, c, tuned(runs, task, c, given.scale), given.seeds, given.scale) for c in CONTENDERS]
        make((plan for turn in zip(*each, strict=True) for plan in turn), runs, task, given)


def settle(runs: Runs, given: argparse.Namespace) -> None:
    """Write the page of what was measured by now."""
    rates = {(t.name, c.name): tuned(runs, t, c, given.scale) for t in TASKS for c in CONTENDERS}
    pairs = [(task, contender) for task in TASKS for contender in CONTENDERS]
    plans = [p for t, c in pairs for p in compared(t, c, rates[t.name, c.name], given.seeds, given.scale)]
    tried = {p: runs.found[p] for t, c in pairs for _, p in grid(t, c, given.scale) if p in runs.found}
    found = {plan: runs.found[plan] for plan in plans if plan in runs.found}
    command = "python benchmarks/loose.py" + (f" --scale {given.scale:g}" if given.scale != 1 else "")
    if given.seeds != SEEDS:
        command += f" --seeds {given.seeds}"
    write(given.folder, Measured(found, tried, rates, command, given.congestion))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="try the grid of rates first, with a seed of its own")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="runs whose name has all of these")
    parser.add_argument("--list", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument("--page", action="store_true", help="run nothing; write what is there")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--scale", type=float, default=1.0, help="of steps; less than 1 to try this out")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("STRETTO_DATA"), help="[default: $STRETTO_DATA; else it is fetched]"
    )
    parser.add_argument("--congestion", default="", help="TCP's, on every host [default: this machine's]")
    parser.add_argument("--folder", type=Path, default=RESULTS, help=f"where {RUNS} and the page are")
    given = parser.parse_args()
    runs = Runs(given.folder / RUNS)
    try:
        if not given.page:
            if given.tune:
                tune(runs, given)
            compare(runs, given)
    except StrettoError as e:
        sys.exit(f"stretto: {e}")
    if not given.list:
        settle(runs, given)


if __name__ == "__main__":
    main()
