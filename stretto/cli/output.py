"""What commands print, and where: people read the console, programs read the one JSON object of ``--json``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console

from stretto.errors import UsageError

_PAPER: Final = 120
"""Columns of tables where there is no terminal."""


def console(json: str | None) -> Console:
    """Standard output, unless that is where the JSON goes; without colours where the terminal or NO_COLOR says so."""
    found = Console(stderr=json == "-", highlight=False, soft_wrap=True)
    if not found.is_terminal:
        found.width = max(found.width, _PAPER)
    return found


def printer(console: Console) -> Callable[[str], None]:
    """Prints what agents write, as they wrote it."""
    return lambda line: console.print(line, markup=False)


def check_json(json: str | None) -> None:
    """Refuse a path that could not be written at the end, before the work begins."""
    if json is None or json == "-":
        return
    path = Path(json)
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"--json {json}: {'that is a directory' if path.is_dir() else f'{path.parent} does not exist'}"
        )


def write_json(json: str | None, value: Any) -> None:
    """One object, indented, to the path (``-`` is standard output); nothing without a path."""
    if json is None:
        return
    text = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    if json == "-":
        sys.stdout.write(text.decode())
        sys.stdout.flush()
    else:
        try:
            Path(json).write_bytes(text)
        except OSError as e:
            raise UsageError(f"--json {json}: {e.strerror}") from e


def megabytes(count: float) -> str:
    """Bytes in powers of ten, as networks are sold."""
    return f"{count / 1e6:,.1f} MB"


def percent(part: float) -> str:
    return f"{100 * part:.1f} %"
