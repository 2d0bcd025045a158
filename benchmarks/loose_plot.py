"""How good the model is over seconds, as SVG: a panel for every network, a line for every strategy; the first seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from loose_figures import Table
from loose_plan import CONTENDERS, NETWORKS, Network, Task

WIDTH, HEIGHT, MARGIN, HEAD = 300, 220, 44, 34
COLOURS = ("#555555", "#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf")
Points = Sequence[tuple[float, float]]


def plot(table: Table, task: Task) -> str:
    """Seconds on a logarithmic axis, one range for all panels."""
    panels = [(n, curves) for n in NETWORKS if (curves := dict(_curves(table, task, n)))]
    every = [point for _, curves in panels for points in curves.values() for point in points]
    x = (math.floor(math.log10(min(p[0] for p in every))), math.ceil(math.log10(max(p[0] for p in every))))
    low, high = min(p[1] for p in every), max(p[1] for p in every)
    frame = (x, (low, high if high > low else low + 1))
    drawn = [piece for i, (n, curves) in enumerate(panels) for piece in _panel(i, n, curves, frame)]
    width, height = WIDTH * len(panels), HEIGHT + HEAD
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
            'font-size="10">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *_legend(),
            *drawn,
            "</svg>\n",
        )
    )


def _curves(table: Table, task: Task, network: Network) -> Iterator[tuple[str, Points]]:
    for contender in CONTENDERS:
        marks = table.curve(task, contender.name, 0)
        timed = [(table.seconds(task, network, contender.name, 0, m.step), m) for m in marks]
        points = [(at, 100 * m.accuracy if task.goal == "accuracy" else m.loss) for at, m in timed if at]
        if points:
            yield contender.name, points


def _legend() -> Iterator[str]:
    for i, contender in enumerate(CONTENDERS):
        x = MARGIN + 130 * i
        yield f'<line x1="{x}" y1="12" x2="{x + 16}" y2="12" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2"/>'
        yield f'<text x="{x + 20}" y="15">{contender.name}</text>'


def _panel(
    number: int,
    network: Network,
    curves: dict[str, Points],
    frame: tuple[tuple[int, int], tuple[float, float]],
) -> Iterator[str]:
    (first, last), (low, high) = frame
    left, top = WIDTH * number + MARGIN, HEAD + 10
    wide, tall = WIDTH - MARGIN - 10, HEIGHT - MARGIN

    def across(seconds: float) -> float:
        return left + wide * (math.log10(seconds) - first) / (last - first)

    def down(value: float) -> float:
        return top + tall * (high - value) / (high - low)

    yield f'<rect x="{left}" y="{top}" width="{wide}" height="{tall}" fill="none" stroke="#cccccc"/>'
    yield f'<text x="{left}" y="{top - 4}" font-weight="bold">{network.about}</text>'
    for power in range(first, last + 1):
        yield f'<text x="{across(10.0**power):.1f}" y="{top + tall + 12}" text-anchor="middle">{10.0**power:g} s</text>'
    for part in range(5):
        value = low + (high - low) * part / 4
        yield f'<text x="{left - 4}" y="{down(value) + 3:.1f}" text-anchor="end">{value:.4g}</text>'
    names = [contender.name for contender in CONTENDERS]
    for name, points in curves.items():
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        colour = COLOURS[names.index(name) % len(COLOURS)]
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
