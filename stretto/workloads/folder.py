"""The private folder that a launcher shares with its agents: a FIFO for their news, and what each leaves at its end.

News are JSON lines, and a full pipe drops them rather than slow training. Outcomes are files, whole or not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from stretto.workloads.result import Outcome, Progress

NEWS = "news"


class News:
    """An agent's end of the FIFO; without a reader it says nothing."""

    def __init__(self, folder: Path) -> None:
        try:
            self._pipe = os.open(folder / NEWS, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._pipe = -1

    def tell(self, progress: Progress) -> None:
        """Send, or drop when the reader is behind or gone. A line is shorter than PIPE_BUF, hence never torn."""
        if self._pipe < 0:
            return
        try:
            os.write(self._pipe, msgspec.json.encode(progress) + b"\n")
        except (BlockingIOError, BrokenPipeError):
            return

    def close(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def leave_outcome(folder: Path, outcome: Outcome) -> None:
    """Written under another name first: the launcher sees a whole outcome or none."""
    path = folder / f"outcome-{outcome.rank}"
    path.with_suffix(".part").write_bytes(msgspec.msgpack.encode(outcome))
    path.with_suffix(".part").replace(path)


def outcomes(folder: Path, agents: int) -> Iterator[Outcome]:
    """What the agents left, by rank; those that left nothing are missing."""
    for rank in range(agents):
        path = folder / f"outcome-{rank}"
        if path.exists():
            yield msgspec.msgpack.decode(path.read_bytes(), type=Outcome)
