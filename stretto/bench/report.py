"""What a benchmark found: a table with the command that made it, for the terminal and for a page."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from stretto.bench.measure import Row, Spread

NOT_MEASURED = "-"


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A table. ``data`` is what it was made from, for programs."""

    title: str
    command: str
    about: str
    headers: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    data: Any


@dataclass(frozen=True, slots=True)
class Heading:
    """Of a page: ``command`` writes it, and ``name`` is its file's. ``about``: how all of it was measured."""

    title: str
    command: str
    name: str
    about: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured. ``load`` is the machine's own over the minute before: above 0.3 others were at work."""

    processor: str
    cores: int
    kernel: str
    python: str
    torch: str
    load: float


def machine() -> Machine:
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        load=round(os.getloadavg()[0], 2),
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def compared(title: str, command: str, about: str, rows: Sequence[Row], against: Sequence[str]) -> Section:
    """The usual table: time, ratios to the others, and goals."""
    headers = ("agents", "case", "who", "ms (quartiles)", *(f"/ {name}" for name in against), "goal", "reached")
    cells = tuple(
        (
            str(row.agents),
            row.case,
            row.contender,
            spread_text(row.ms),
            *(spread_text(row.ratios[name]) if name in row.ratios else NOT_MEASURED for name in against),
            *judged(row),
        )
        for row in rows
    )
    return Section(title=title, command=command, about=about, headers=headers, cells=cells, data=list(rows))


def judged(row: Row) -> tuple[str, str]:
    """Its goals, and whether they are reached."""
    goals = [f"{most:g} of {name}" for name, most in row.goals.items()]
    goals += [] if row.most is None else [f"under {row.most:g} ms"]
    return "; ".join(goals), {True: "yes", False: "no", None: ""}[row.reached]


def spread_text(spread: Spread) -> str:
    """
    >>> spread_text(Spread(0.123456, 0.1, 123.456, 20))
    '0.123 (0.100 to 123)'
    """
    return f"{number(spread.median)} ({number(spread.low)} to {number(spread.high)})"


def number(x: float) -> str:
    """Three digits, never an exponent.

    >>> number(0.01234), number(1.2), number(1234.5)
    ('0.012', '1.20', '1,234')
    """
    magnitude = abs(x)
    return (
        f"{x:,.0f}"
        if magnitude >= 100
        else f"{x:.1f}"
        if magnitude >= 10
        else f"{x:.2f}"
        if magnitude >= 1
        else f"{x:.3f}"
    )


CORE: Final = Heading(
    "What the core reaches",
    "make bench",
    "core",
    "One thread an agent. Contenders take turns in the same processes, each turn begins at a barrier, the order\n"
    "rotates. A time lasts from the last agent's beginning to the last one's end. Numbers are medians, with\n"
    "quartiles in brackets; a ratio is the median of the rounds' ratios. What was exchanged was compared with the\n"
    "right result.",
)


def page(sections: Sequence[Section], where: Machine, heading: Heading = CORE) -> str:
    """All tables as Markdown."""
    lines = [
        f"# {heading.title}",
        "",
        f"Written by `{heading.command}`; the same numbers and more are in `{heading.name}.json` beside this page.",
        "",
        f"{where.processor}, {where.cores} cores, Linux {where.kernel}, Python {where.python}, torch {where.torch}; "
        f"load of the machine before it began: {where.load}.",
        "",
        heading.about,
    ]
    for s in sections:
        lines += ["", f"## {s.title}", "", f"`{s.command}`", "", *([s.about, ""] if s.about else [])]
        lines += ["| " + " | ".join(s.headers) + " |", "|" + " --- |" * len(s.headers)]
        lines += ["| " + " | ".join(row) + " |" for row in s.cells]
    return "\n".join(lines) + "\n"
