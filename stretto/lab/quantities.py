"""Rates, times, shares and sizes as people write them: ``100mbit``, ``5ms``, ``0.5%``, ``1MiB``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from stretto.errors import UsageError

_RATES: Final = {"bit": 1 / 8, "kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8}
_TIMES: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_SHARES: Final = {"": 1.0, "%": 0.01}
_SIZES: Final = {"B": 1.0, "KiB": 1024.0, "MiB": 1048576.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a host's access link is, or what of it shall change: bytes/s, seconds one way, a share, bytes."""

    rate: float | None = None
    delay: float | None = None
    loss: float | None = None
    queue: float | None = None


def line(
    *, rate: str | None = None, delay: str | None = None, loss: str | None = None, queue: str | None = None
) -> Line:
    """
    >>> line(rate="100mbit", delay="5ms")
    Line(rate=12500000.0, delay=0.005, loss=None, queue=None)

    Raises:
        UsageError: a text that is none of these.
    """
    found = Line(
        rate=None if rate is None else _read(rate, "rate", _RATES, "100mbit, 1gbit or 512kbit"),
        delay=None if delay is None else seconds(delay, "delay"),
        loss=None if loss is None else _read(loss, "loss", _SHARES, "0.5% or 0.005"),
        queue=None if queue is None else _read(queue, "queue", _SIZES, "256KiB or 1MiB"),
    )
    if found.rate == 0:
        raise UsageError(f"rate {rate}: nothing would ever arrive; cut the host instead")
    if found.loss is not None and found.loss >= 1:
        raise UsageError(f"loss {loss}: nothing would ever arrive; cut the host instead")
    return found


def seconds(text: str, what: str) -> float:
    """
    >>> seconds("5ms", "delay"), seconds("2min", "pause")
    (0.005, 120.0)
    """
    return _read(text, what, _TIMES, "5ms, 200us or 1s")


def _read(text: str, what: str, units: Mapping[str, float], example: str) -> float:
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z%]*)", text.strip())
    if not found or found[2] not in units:
        raise UsageError(f"{what} {text!r} cannot be read; write {example}")
    return float(found[1]) * units[found[2]]
