"""Faults from a schedule, done for real to agents that train on the hosts of a laboratory, and what came of it.

*Theory of operation.* A run has three parts: calm, against which it is compared; the storm; and calm again until the
job's time is over, so that whoever was hit last can come back. All agents append to one trace. We do nothing but break:
restarting the killed is the launchers' work, and going on is the agents'. A deed is over when its victim could go on:
its process was started again, it got its SIGCONT, or its cable back. How long it then takes is what we measure.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stretto.errors import DataError, ScriptFailed
from stretto.lab.faults import Fault
from stretto.lab.fleet import Fleet
from stretto.lab.story import Deed
from stretto.trace import read

_TICK: Final = 0.05
_RETURN: Final = 60.0
"""Seconds after the storm in which its last victims may come back."""
_ENDING: Final = 120.0
"""Seconds that a training may take to begin, or to end."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Played:
    """What was done. Monotonic seconds: ``calm`` from when to when, and the storm's end."""

    deeds: tuple[Deed, ...]
    calm: tuple[float, float]
    until: float


@dataclass(frozen=True, slots=True)
class _Open:
    """A fault under way, and the process groups that it hit."""

    fault: Fault
    began: float
    pids: frozenset[int]


def play(fleet: Fleet, trace: Path, faults: Sequence[Fault], *, calm: float, seconds: float, say: Say) -> Played:
    """Wait for the training to begin, and do ``faults``; returns when they are over and ``seconds`` of storm too, or
    when the training has ended.

    Raises:
        ScriptFailed: it did not begin, or it failed.
    """
    begin = _first_commit(fleet, trace)
    storm = begin + calm
    to_come, open_, deeds = list(faults), list[_Open](), list[Deed]()
    while fleet.running() and (to_come or open_ or time.monotonic() < storm + seconds):
        now = time.monotonic()
        if now > storm + seconds + _RETURN:
            break
        while to_come and storm + to_come[0].at <= now:
            open_ += _strike(fleet, to_come.pop(0), say)
        for one in list(open_):
            ended = _over(fleet, one, now)
            if ended is not None:
                open_.remove(one)
                deeds.append(_deed(one, ended))
        time.sleep(_TICK)
    deeds += [_deed(one, math.inf) for one in open_]
    return Played(tuple(sorted(deeds, key=lambda d: d.began)), (begin, storm), time.monotonic())


def _deed(one: _Open, ended: float) -> Deed:
    return Deed(kind=one.fault.kind, labels=one.fault.labels, began=one.began, ended=ended)


def _strike(fleet: Fleet, fault: Fault, say: Say) -> Iterator[_Open]:
    """Begin a fault. There is none where its victim is not there."""
    who = "the coordinator" if fault.kind == "coordinator" else f"agent {', '.join(map(str, fault.labels))}"
    if fault.kind == "cut":
        pids = frozenset[int]()
    elif fault.kind == "coordinator":
        pids = frozenset(fleet.coordinator())
    else:
        pids = frozenset(life.pid for life in fleet.lives(fault.labels))
    if fault.kind != "cut" and not pids:
        say(f"{fault.kind}: {who} was not there")
        return
    say(f"{fault.kind}: {who}" + (f", for {fault.seconds:.1f} s" if fault.seconds else ""))
    began = time.monotonic()
    if fault.kind == "cut":
        fleet.lab.cut(fleet.host_of(fault.labels[0]))
    elif fault.kind == "coordinator":
        _send(os.kill, pids, signal.SIGKILL)
    else:
        _send(os.killpg, pids, signal.SIGSTOP if fault.kind == "stop" else signal.SIGKILL)
    yield _Open(fault, began, pids)


def _send(how: Callable[[int, int], None], to: Iterable[int], number: signal.Signals) -> None:
    """A signal to those that are still there."""
    for one in to:
        with contextlib.suppress(ProcessLookupError):
            how(one, number)


def _over(fleet: Fleet, one: _Open, now: float) -> float | None:
    """When a fault was over, if it is; ends it when its time has come."""
    fault = one.fault
    if fault.kind == "coordinator":
        return one.began
    if fault.kind == "kill":
        again = (max(life.began, one.began) for life in fleet.lives(fault.labels) if life.pid not in one.pids)
        return next(again, None)  # the kernel counts starts in hundredths
    if now < one.began + fault.seconds:
        return None
    if fault.kind == "cut":
        fleet.lab.heal(fleet.host_of(fault.labels[0]))
    else:
        _send(os.killpg, one.pids, signal.SIGCONT)
    return now


def _first_commit(fleet: Fleet, trace: Path) -> float:
    ends = time.monotonic() + _ENDING
    while time.monotonic() < ends and fleet.running():
        with contextlib.suppress(DataError):
            if any(event["event"] == "commit" for event in read(trace)):
                return time.monotonic()
        time.sleep(_TICK)
    raise ScriptFailed(f"the training did not begin; {fleet.last_words()}")


def to_the_end(fleet: Fleet, patience: float = _ENDING) -> None:
    """Wait until all launchers are done, for so many seconds.

    Raises:
        ScriptFailed: one failed, or does not end.
    """
    ends = time.monotonic() + patience
    while fleet.running():
        if time.monotonic() > ends:
            raise ScriptFailed(f"the training did not end; {fleet.last_words()}")
        time.sleep(_TICK)
