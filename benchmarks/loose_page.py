"""docs/results/loose.md and loose.json, of what loose.py has measured by now."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from loose_figures import Row, Table
from loose_plan import CONTENDERS, INFINITE, NETWORKS, REFERENCE, TASKS, Network, Plan, Rates, Task
from loose_plot import plot
from loose_runs import Run

from stretto.workloads.result import machine, versions

CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")


@dataclass(frozen=True)
class Measured:
    """Runs that are compared, and those that rates were tuned by; ``command`` makes them again."""

    runs: Mapping[Plan, Run]
    tried: Mapping[Plan, Run]
    rates: Mapping[tuple[str, str], Rates]
    command: str
    congestion: str


@dataclass(frozen=True)
class Goal:
    """What is to be reached by strategies of ours."""

    what: str
    network: str
    least: float
    """Of the value; of a negative one likewise."""

    def value(self, task: Task, row: Row) -> float | None:
        if self.what == END:
            apart = row.apart_accuracy if task.goal == "accuracy" else row.apart_loss
            return None if apart is None else min(0.0, apart if task.goal == "accuracy" else -apart)
        return {
            SOONER: row.sooner,
            FEWER: row.fewer,
            NOT_SLOWER: row.faster,
            COMPUTING: row.computing,
        }[self.what]


SOONER = "times sooner at the reference's end"
FEWER = "times fewer bytes"
END = "end at equal samples: points of accuracy, or % of loss, behind"
NOT_SLOWER = "speed of a step, of the reference's"
COMPUTING = "share of time spent computing"


def goals(task: Task) -> list[Goal]:
    return [
        Goal(SOONER, "20mbit", 20),
        Goal(FEWER, "20mbit", 200),
        Goal(END, "20mbit", -task.allowed),
        Goal(SOONER, "100mbit", 5),
        Goal(NOT_SLOWER, "1gbit", 1 / 1.05),
        Goal(COMPUTING, "lossy", 0.9),
    ]


def write(folder: Path, found: Measured) -> None:
    """The page, its plots, and the numbers."""
    table = Table(found.runs)
    cells = [(t, n, c) for t in TASKS for n in NETWORKS for c in CONTENDERS]
    rows = [row for t, n, c in cells if (row := table.row(t, n, c)) is not None]
    plots = {f"loose-{task.name}.svg": plot(table, task) for task in TASKS if any(r.task == task.name for r in rows)}
    for name, drawn in plots.items():
        (folder / name).write_text(drawn, encoding="utf-8")
    numbers = {
        "command": found.command,
        "machine": machine() | versions(),
        "day": time.strftime("%Y-%m-%d"),
        "tasks": TASKS,
        "networks": NETWORKS,
        "contenders": CONTENDERS,
        "rates": [{"task": t, "contender": c, "chosen": rates} for (t, c), rates in found.rates.items()],
        "rows": rows,
        "runs": list(found.runs.values()),
        "tuning": list(found.tried.values()),
    }
    (folder / "loose.json").write_bytes(msgspec.json.format(msgspec.json.encode(numbers), indent=1) + b"\n")
    remarks = folder / "loose-remarks.md"
    said = ["", remarks.read_text(encoding="utf-8").rstrip()] if remarks.exists() else []
    (folder / "loose.md").write_text("\n".join([*page(found, rows), *said]) + "\n", encoding="utf-8")


def page(found: Measured, rows: Sequence[Row]) -> Iterator[str]:
    described = ", ".join(f"{k} {v}" for k, v in (versions() | machine()).items())
    congestion = found.congestion or CONGESTION.read_text(encoding="ascii").strip()
    yield from (
        "# Loose synchrony",
        "",
        f"Written by `make loose` (`{found.command}`, where `--tune` tunes rates first). Four agents, on four",
        f"hosts of a laboratory (`stretto lab`) or on one machine without a network; one thread each; {congestion} as",
        f"congestion control. {described}.",
        "",
        "All strategies see equally many samples. What is tested is the mean of the agents' weights, on all test data,",
        "while clocks stand still. The *reference* is `allreduce`. A run on a network has the bits that it has without",
        "one (*same bits* counts at how many looks it was so). So what a seed learns is measured without a network; on",
        "slow ones the reference is trained to the end with the first seed at most, and the others tell what a step",
        "takes: ~ marks figures that rest on that. *The reference's end* is its final accuracy (loss); when that is",
        "first reached is on straight lines between looks. The *figure of merit* is the time divided by that of the",
        "same samples without a network. Waiting is the trainer's. Packets are lost on each of the two links that they",
        "take. Rates were tuned without a network, with one seed of its own, by the loss on the test data; for all",
        "strategies alike. Medians over seeds.",
    )
    for task in TASKS:
        mine = [row for row in rows if row.task == task.name]
        if mine:
            yield from _section(found, task, mine)
    failed = [run for run in (*found.runs.values(), *found.tried.values()) if run.error]
    if failed:
        yield from ("", "## What failed", "", *(f"- {run.plan}: {run.error}" for run in failed))


def _section(found: Measured, task: Task, rows: Sequence[Row]) -> Iterator[str]:
    yield from ("", f"## {task.workload}, {task.model}", "")
    yield f"{task.batch_size} samples of an agent in a step, {task.steps} steps, Adam."
    yield from ("", f"![{task.goal} over seconds](loose-{task.name}.svg)")
    reached = list(_goals(task, rows))
    if reached:
        yield from ("", "| strategy | network | goal | measured | reached |", "|---|---|---|---|---|", *reached)
    yield from ("", "At equal samples:", "", *_ends(found, task, rows))
    for network in NETWORKS:
        here = [row for row in rows if row.network == network.name]
        if here:
            yield from ("", f"### {network.about}", "")
            yield _head(
                "strategy", "s a step", "figure of merit", "computing", "bytes a step", "fewer", *ARRIVAL, "same bits"
            )
            yield from (_network_line(row) for row in here)


ARRIVAL = ("same samples, times faster", "s to the reference's end", "times sooner")


def _head(*titles: str) -> str:
    return f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"


def _network_line(row: Row) -> str:
    about = "~" if row.part else ""
    cells = (
        f"`{row.strategy}`",
        f"{row.step:.3f}",
        _number(row.merit, ".2f"),
        f"{100 * row.computing:.0f} %",
        f"{row.sent:,.0f}",
        _number(row.fewer, ".1f"),
        _number(row.faster, ".2f"),
        about + _number(row.seconds_to, ".1f", "never"),
        about + _number(row.sooner, ".2f", "never") if row.fewer else "",
        f"{row.alike[0]} of {row.alike[1]}",
    )
    return f"| {' | '.join(cells)} |"


def _ends(found: Measured, task: Task, rows: Sequence[Row]) -> Iterator[str]:
    yield _head("strategy", "tuned", "accuracy, %", "points apart", "loss", "% apart", "steps to the reference's end")
    for row in rows:
        if row.network == INFINITE.name:
            rates = found.rates[task.name, row.contender]
            outer = f", outer {rates.outer:g}" if "outer" in row.strategy else ""
            accuracy = None if row.accuracy is None else 100 * row.accuracy
            cells = (
                f"`{row.strategy}`",
                f"lr {rates.lr:g}{outer}",
                _number(accuracy, ".2f"),
                _number(row.apart_accuracy, "+.2f"),
                _number(row.loss, ".4f"),
                _number(row.apart_loss, "+.2f"),
                _number(row.steps_to, ".0f", "never"),
            )
            yield f"| {' | '.join(cells)} |"


def _goals(task: Task, rows: Sequence[Row]) -> Iterator[str]:
    """A line for every goal of every strategy that has them."""
    known = {(row.contender, row.network): row for row in rows}
    for contender in (c for c in CONTENDERS if c.ours):
        for goal in goals(task):
            for network in (n for n in NETWORKS if n.name == goal.network):
                mine, reference = (known.get((name, network.name)) for name in (contender.name, REFERENCE))
                if mine is not None and (reference is not None or goal.what == COMPUTING):
                    yield _goal_line(goal, network, mine, goal.value(task, mine))


def _goal_line(goal: Goal, network: Network, row: Row, value: float | None) -> str:
    reached = "yes" if value is not None and value >= goal.least else "no"
    wanted = f"{goal.what}: at least {goal.least:.3g}"
    return f"| `{row.strategy}` | {network.about} | {wanted} | {_number(value, '.3g', 'never')} | {reached} |"


def _number(value: float | None, form: str, none: str = "") -> str:
    return none if value is None else format(value, form)
