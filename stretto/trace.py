"""Events as JSON lines: one object a line, one write a line, so processes may share a file without tearing lines.

Every event carries ``event``, ``agent``, ``wall`` (seconds since 1970, to line up machines) and ``time`` (monotonic
seconds, to measure with), then its own fields.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from stretto.errors import DataError

LONGEST_TEXT = 512
LONGEST_LIST = 64


class Trace:
    """Where one agent writes what happens to it; with ``path=None`` it writes nothing and costs nothing."""

    def __init__(self, path: Path | None, agent: int) -> None:
        self.agent = agent
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = -1 if path is None else os.open(path, flags, 0o644)

    def event(self, name: str, **fields: Any) -> None:
        """Append one line. Long texts and lists are cut; what JSON cannot say is written as text."""
        if self._file < 0:
            return
        head = {"event": name, "agent": self.agent, "wall": time.time(), "time": time.monotonic()}
        line = msgspec.json.encode(head | {k: _bounded(v) for k, v in fields.items()})
        os.write(self._file, line + b"\n")

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file, in the order written; an unfinished last line is left out.

    Raises:
        DataError: the file is missing, or a line is not an event.
    """
    try:
        file = path.open("rb")
    except OSError as e:
        raise DataError(f"cannot read the trace {path}: {e.strerror}") from e
    with file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError) as e:
                raise DataError(f"{path}, line {number}: not an event ({e}); is this a trace?") from e


def _bounded(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else hex(value)[:LONGEST_TEXT]
    if isinstance(value, list | tuple) and depth < 2:
        return [_bounded(v, depth + 1) for v in value[:LONGEST_LIST]]
    if isinstance(value, dict) and depth < 2:
        return {str(k)[:LONGEST_TEXT]: _bounded(value[k], depth + 1) for k in list(value)[:LONGEST_LIST]}
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
