"""What a :class:`~stretto.membership.views.Views` wants done: values, carried out in order by whoever drives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from stretto.membership.messages import Message, Seat, View, Vote


@dataclass(frozen=True, slots=True)
class Send:
    """On the control connection with ``uid``; lost where that breaks."""

    uid: int
    message: Message


@dataclass(frozen=True, slots=True)
class Dial:
    """Make a control connection with this one; answered by ``met``, or by ``lost`` when it cannot be had."""

    seat: Seat


@dataclass(frozen=True, slots=True)
class Knock:
    """Make a control connection with whoever answers where newcomers come in: all that we know may be gone."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the control connection with ``uid`` when all that was said has left; not answered."""

    uid: int


@dataclass(frozen=True, slots=True)
class Freeze:
    """End all exchanges of view ``number`` for good; answered by ``frozen``."""

    number: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Before the next fence round begins, stop and call ``fence(round)``: somebody wants in. Ended by the next view."""


@dataclass(frozen=True, slots=True)
class Install:
    """We are a member of this view."""

    view: View


@dataclass(frozen=True, slots=True)
class Out:
    """The others go on without us, in a view that we are not in; we may come back as a newcomer."""

    why: str


@dataclass(frozen=True, slots=True)
class Deny:
    """The run refuses us, or is nowhere any more."""

    why: str


@dataclass(frozen=True, slots=True)
class Timer:
    """Call ``timer(name)`` once after ``seconds``. Timers are not cancelled."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Save:
    """Keep this where it outlives the process, before anything that follows; None: forget it."""

    vote: Vote | None


@dataclass(frozen=True, slots=True)
class Suspected:
    """For the trace: ``label`` was found lost; ``what`` in one word, and ``why``."""

    uid: int
    label: int
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Say:
    """To the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Over:
    """All agents have left: nobody can enter any more."""


@dataclass(frozen=True, slots=True)
class Dismiss:
    """We serve, and all agents have left: go."""


Effect: TypeAlias = (
    Send | Dial | Knock | Drop | Freeze | Hold | Install | Out | Deny | Timer | Save | Suspected | Say | Over | Dismiss
)
