"""Watching agents train: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stretto.cli.output import megabytes, percent
from stretto.workloads.result import Progress

QUIET = 5.0
"""Seconds between two plain lines, when no accuracy is news."""


class View(Protocol):
    def show(self, progress: Progress) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


def view(console: Console, title: str, agents: int) -> View:
    """The view that this console can show."""
    if console.is_terminal and not console.is_dumb_terminal:
        return Screen(console, title, agents)
    return Lines(console, title, agents)


class Screen:
    """A table with a row an agent, drawn anew a few times a second."""

    def __init__(self, console: Console, title: str, agents: int) -> None:
        self.title = title
        self.latest: dict[int, Progress] = {}
        self.agents = agents
        self.live = Live(get_renderable=self.table, console=console, refresh_per_second=8)

    def show(self, progress: Progress) -> None:
        self.latest[progress.rank] = progress

    def table(self) -> Table:
        table = Table(title=self.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("agent", justify="right", style="cyan")
        for name in ("epoch", "step", "samples/s", "loss", "accuracy", "sent", "received", "waiting"):
            table.add_column(name, justify="right")
        for rank in range(self.agents):
            table.add_row(str(rank), *(_cells(self.latest[rank]) if rank in self.latest else ["…"] * 8))
        return table

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.live.stop()


class Lines:
    """One line when the accuracy is news, or after a quiet while."""

    def __init__(self, console: Console, title: str, agents: int) -> None:
        self.console = console
        self.title = title
        self.agents = agents
        self.accuracy: float | None = None
        self.spoke = 0.0
        self.speeds: dict[int, float] = {}

    def show(self, progress: Progress) -> None:
        self.speeds[progress.rank] = _speed(progress)
        news = progress.accuracy != self.accuracy and progress.seconds - self.spoke > QUIET / 10
        if progress.rank or not (news or progress.seconds - self.spoke > QUIET):
            return
        self.accuracy, self.spoke = progress.accuracy, progress.seconds
        accuracy = "" if progress.accuracy is None else f", accuracy {percent(progress.accuracy)}"
        self.console.print(
            f"{progress.seconds:6.1f} s  epoch {progress.epoch}, step {progress.step}, loss {progress.loss:.3f}"
            f"{accuracy}, {sum(self.speeds.values()):,.0f} samples/s, agent 0 sent {megabytes(progress.bytes_sent)}"
        )

    def __enter__(self) -> Self:
        self.console.print(self.title)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None


def _cells(p: Progress) -> list[str]:
    return [
        str(p.epoch),
        str(p.step),
        f"{_speed(p):,.0f}",
        f"{p.loss:.3f}",
        "…" if p.accuracy is None else percent(p.accuracy),
        megabytes(p.bytes_sent),
        megabytes(p.bytes_received),
        percent(min(1.0, p.waiting / p.seconds) if p.seconds > 0 else 0.0),
    ]


def _speed(p: Progress) -> float:
    return p.samples / p.seconds if p.seconds > 0 else 0.0
