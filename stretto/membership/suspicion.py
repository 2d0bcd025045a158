"""When silence means something, and what it means: pure, without clock or I/O.

Theory of operation. A pulse comes every 0.2 s over TCP, so it is never lost, only late: as late as its sender's jitter
makes it, plus what the kernel needs to send again what the network dropped. :class:`Rhythm` allows for both: the median
of the last gaps plus :data:`JITTERS` median absolute deviations (robust, where the normal distribution of the φ-accrual
detector, Hayashibara et al., SRDS 2004, is drawn by a single late pulse), plus :data:`RESENDS` times what the kernel
waits before it sends again (RFC 6298; linear and not doubling on a thin stream).

The bounds by numbers, at 20 Mbit/s, 40 ms and 0.5 % loss: sending again takes 0.24 s, so a gap of :data:`FLOOR` = 1.5 s
is a pulse dropped five times in a row, 3·10⁻¹² each, 5·10⁻⁸ in the 18,000 pulses of a pair in 30 minutes. Where other
traffic keeps 0.6 s in the queue it takes about 0.8 s, and 2.5 s are allowed: dropped three times, 0.2 % in 30 minutes.
:data:`CEILING` keeps the worst below three seconds: 2.5 s, one pulse before, and one until we look.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal, TypeAlias

FLOOR: Final = 1.5
CEILING: Final = 2.5
JITTERS: Final = 10
RESENDS: Final = 3
RESET_LATE: Final = 1.0
"""A reset within this many seconds of the last word is a process that ended; later, a machine that forgot us."""
ARRIVED_STOPPED: Final = 15.0
"""Seconds that a trainer may stay stopped that was so already when its courier called: it has been left out before."""

_GAPS: Final = 64
_STOPPED: Final = ("T", "t")
"""States of /proc/PID/stat: stopped by a signal, and by a debugger."""

What: TypeAlias = Literal["closed", "stopped", "cut", "half-open", "slow"]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What somebody is suspected of, and the evidence, in words that follow its name."""

    what: What
    why: str


class Rhythm:
    """The gaps between the last pulses of one peer. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self._last: float | None = None

    def observe(self, at: float) -> None:
        """A pulse came."""
        if self._last is not None:
            self._gaps.append(max(0.0, at - self._last))
        self._last = at

    def silent_after(self, resend: float = 0.0) -> float:
        """Seconds without a word after which to suspect it, if the kernel waits ``resend`` seconds to send again."""
        if not self._gaps:
            return CEILING
        usual = median(self._gaps)
        jitter = median(abs(gap - usual) for gap in self._gaps)
        return min(CEILING, max(FLOOR, usual + JITTERS * jitter + RESENDS * resend))


@dataclass(frozen=True, slots=True)
class Acks:
    """What the kernel says of a connection (TCP_INFO). ``age`` and ``resend`` in seconds.

    ``missing``: segments of ours that the other machine has not acknowledged; ``age``: since it last acknowledged any;
    ``resend``: what our kernel waits before it sends again.
    """

    missing: int = 0
    age: float = 0.0
    resend: float = 0.0


@dataclass(frozen=True, slots=True)
class Signs:
    """What is known of a peer whose connection stands. All times in seconds.

    ``quiet``: since its last word. ``state``: its trainer's in /proc, and ``stopped_for`` how long it has been a
    stopped one. ``last``: everybody else waits for it.
    """

    quiet: float = 0.0
    acks: Acks = Acks()
    state: str = "R"
    stopped_for: float = 0.0
    last: bool = False


def classify(signs: Signs, silent_after: float) -> Suspicion | None:
    """What ``signs`` mean for one that is silent after so many seconds; None when nothing is wrong."""
    if signs.quiet > silent_after:
        return _silence(signs)
    if signs.stopped_for > silent_after:
        why = f"its trainer has been stopped for {signs.stopped_for:.1f} s (state {signs.state} in /proc)"
        return Suspicion("stopped", why)
    return Suspicion("slow", "it is alive and trains, and everybody else waits for it") if signs.last else None


def _silence(signs: Signs) -> Suspicion:
    """A machine that lives acknowledges each of our pulses: half of the silence is many of them in a row."""
    if signs.acks.missing and signs.acks.age > signs.quiet / 2:
        why = (
            f"nothing came from its machine for {signs.quiet:.1f} s, nor an acknowledgement for {signs.acks.age:.1f} s"
        )
        return Suspicion("cut", why)
    why = f"its machine acknowledges what is sent, but its process has said nothing for {signs.quiet:.1f} s"
    return Suspicion("stopped", why)


def ending(how: Literal["closed", "reset", "refused", "unreachable"], quiet: float = 0.0) -> Suspicion:
    """What it means that a connection ended, or could not be made, after so many seconds without a word."""
    match how:
        case "closed":
            return Suspicion("closed", "its connection was closed")
        case "reset" if quiet <= RESET_LATE:
            return Suspicion("closed", "its connection was reset")
        case "reset":
            why = f"its machine no longer knows the connection: it reset it after {quiet:.1f} s of silence"
            return Suspicion("half-open", why)
        case "refused":
            return Suspicion("half-open", "its machine answers, and refuses: its process is not there")
        case "unreachable":
            return Suspicion("cut", "its machine cannot be reached")


class Vigil:
    """What one peer's pulses have shown so far. Silence is judged only after the first."""

    def __init__(self) -> None:
        self.state = ""
        self._rhythm = Rhythm()
        self._heard: float | None = None
        self._ran = False
        self._stopped: float | None = None

    def word(self, at: float) -> None:
        """Something came, if only a part of a message."""
        if self._heard is not None:
            self._heard = at

    def pulse(self, at: float, state: str) -> None:
        """A pulse came, and this is its trainer's state."""
        self._heard, self.state = at, state
        self._rhythm.observe(at)
        if state not in _STOPPED:
            self._ran, self._stopped = True, None
        elif self._stopped is None:
            self._stopped = at

    def forgive(self, seconds: float) -> None:
        """We did not look for so long; it need not have been silent, nor stopped."""
        if self._heard is not None:
            self._heard += seconds
        if self._stopped is not None:
            self._stopped += seconds

    def quiet(self, at: float) -> float:
        """Seconds since its last word; 0 before its first pulse."""
        return 0.0 if self._heard is None else max(0.0, at - self._heard)

    def is_well(self, at: float) -> bool:
        """Is there nothing to :meth:`judge`?"""
        return self.quiet(at) <= FLOOR and self._stopped is None

    def judge(self, at: float, acks: Acks) -> Suspicion | None:
        """What it is suspected of, if of anything."""
        quiet = self.quiet(at)
        silent_after = self._rhythm.silent_after(acks.resend)
        if quiet <= silent_after and not self._ran:
            silent_after = ARRIVED_STOPPED
        stopped_for = 0.0 if self._stopped is None else at - self._stopped
        return classify(Signs(quiet, acks, self.state, stopped_for), silent_after)
