"""What an agent prints, line by line, behind its number; a traceback is held back until we know whether it matters."""

from __future__ import annotations

import os
import re
import sys
from typing import IO, Final

_CHUNK: Final = 1 << 16
_LONGEST_LINE: Final = 1 << 16
_MOST_HELD: Final = 5000
_TRACEBACK: Final = "Traceback (most recent call last):"
_ERROR: Final = re.compile(r"(?:(?:server )?\d+\| )?(?!stretto: )([A-Za-z_][\w.]*(?:: .*)?)$")
"""A line that names an exception: nothing else of a traceback begins in its first column with a name."""


class Pipe:
    """Lines from a pipe of an agent; what follows the last line break waits for the rest."""

    def __init__(self, source: IO[bytes], prefix: str) -> None:
        os.set_blocking(source.fileno(), False)
        self.source = source
        self.open = True
        self._prefix = prefix
        self._rest = b""

    def read(self) -> list[str]:
        """What is there now. A line that a progress bar has overwritten reads as it looks in the end."""
        try:
            data = os.read(self.source.fileno(), _CHUNK)
        except BlockingIOError:
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (not data or len(self._rest) > _LONGEST_LINE):
            lines.append(self._rest)
            self._rest = b""
        self.open = bool(data)
        return [self._prefix + _as_seen(line) for line in lines]

    def read_all(self) -> list[str]:
        """Everything that is there, and the rest of a line."""
        lines: list[str] = []
        while self.open and (more := self.read()):
            lines += more
        if self._rest:
            lines.append(self._prefix + _as_seen(self._rest))
            self._rest = b""
        return lines

    def close(self) -> None:
        self.open = False
        self.source.close()


class Held:
    """Passes lines on, and holds them back from a traceback onwards: it may be the echo of another agent's failure."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._released: str | None = None
        self.since: float | None = None

    def take(self, lines: list[str], now: float) -> list[str]:
        """What to show of ``lines`` at once."""
        if self.since is None:
            first = next((i for i, line in enumerate(lines) if _TRACEBACK in line), len(lines))
            if first == len(lines):
                return lines
            self._lines, self.since = lines[first:], now
            return lines[:first]
        self._lines += lines
        return self.release() if len(self._lines) > _MOST_HELD else []

    def error(self) -> str | None:
        """The first error of the traceback that is, or was, held: what came while it was handled is not the cause."""
        within = False
        for line in self._lines:
            within = within or _TRACEBACK in line
            if within and (found := _ERROR.match(line)) is not None:
                return found[1]
        return self._released

    def release(self) -> list[str]:
        """All that was held; what comes next passes again."""
        self._released = self.error()
        lines, self._lines, self.since = self._lines, [], None
        return lines


def print_line(line: str, error: bool) -> None:
    """To our own standard output or error, whatever its encoding, at once."""
    stream = sys.stderr if error else sys.stdout
    stream.write(line.encode(stream.encoding or "utf-8", "replace").decode(stream.encoding or "utf-8") + "\n")
    stream.flush()


def _as_seen(line: bytes) -> str:
    return line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode("utf-8", "replace")
