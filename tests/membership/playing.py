"""Plays the golden scripts: a few Views nodes, whose messages are delivered when the script says so."""

from __future__ import annotations

from collections import deque

import msgspec

from stretto.core import FIRST_SERVER, Network
from stretto.membership.effects import (
    Deny,
    Dial,
    Dismiss,
    Drop,
    Effect,
    Freeze,
    Hold,
    Install,
    Knock,
    Out,
    Over,
    Save,
    Say,
    Send,
    Suspected,
    Timer,
)
from stretto.membership.messages import FOUNDER, Ballot, Decide, Hello, Message, Report, Seat, View, Vote
from stretto.membership.views import Views

_KINDS = "fabcst"


class Play:
    """The nodes of one script, by name, and what is under way between them."""

    def __init__(self) -> None:
        self._uids: dict[str, int] = {}
        self._views: dict[str, Views] = {}
        self._heads: dict[str, str] = {}
        self._disk: dict[int, Vote | None] = {}
        self._size = 0
        self._min_agents: int | None = None
        self._mail: deque[tuple[str, str, Message]] = deque()
        self._lines: list[str] = []

    def paragraph(self, text: str) -> str:
        """The paragraph with what its commands give now."""
        asked = text.partition("\n----")[0].strip("\n")
        self._lines = []
        for line in asked.splitlines():
            if not line.startswith("#"):
                self._command(line.split())
        return asked + ("\n----\n" + "\n".join(self._lines) if self._lines else "") + "\n"

    # Commands

    def _command(self, words: list[str]) -> None:
        match words:
            case ["run", size, *rest]:
                self._size = int(size)
                servers = int(rest[1]) if rest[:1] == ["servers"] else 0
                self._min_agents = int(rest[-1]) if len(rest) % 2 else None
                seat = self._seat("f")
                self._views["f"] = Views.founder(seat, self._size, Network(), self._min_agents, servers=servers)
                self._do("f", self._views["f"].begin())
            case [name, "comes", *rest]:
                vote = self._disk.get(self._seat(name).label) if "vote" in rest else None
                hello = Hello(self._seat(name), self._size, 0, vote)
                self._to(rest[0] if rest and rest[0] != "vote" else "f", "hello", hello)
            case ["deliver", *without]:
                self._deliver({word.removeprefix("-") for word in without})
            case [name, "lost", other, *why]:
                self._to(name, "lost", self._uid(other), " ".join(why) or "its connection was closed")
            case [name, "meets", other]:
                self._to(other, "hello", self._views[name].greeting)
                self._to(name, "met", self._uid(other))
            case [name, "suspects", other, *why]:
                self._to(name, "suspect", self._uid(other), " ".join(why))
            case [name, "frozen", number, round, done, *rest]:
                finished = bytes(int(digit) for digit in done.strip("-"))
                report = Report(
                    self._uid(name), int(round), bool(finished), finished, "fence" in rest, "unhealed" not in rest, "m"
                )
                self._to(name, "frozen", int(number), report)
            case [name, "timer", *what]:
                self._to(name, "timer", " ".join(what))
            case [name, "ready", *brought]:
                self._to(name, "ready", " ".join(brought) or "m")
            case [name, "fence", round]:
                self._to(name, "fence", int(round))
            case [name, "leaves"]:
                self._to(name, "leave")
            case _:
                raise AssertionError(f"no command: {' '.join(words)}")

    def _deliver(self, without: set[str]) -> None:
        while self._mail:
            src, dst, message = self._mail.popleft()
            if src in without or dst in without:
                continue
            if dst not in self._views:
                self._enter(dst, src, message)
            else:
                self._to(dst, "heard", self._uid(src), message)

    def _enter(self, name: str, head: str, message: Message) -> None:
        if isinstance(message, Decide):
            mine = next((seat for seat in message.view.seats if seat.uid == self._uid(name)), self._seat(name))
            vote = self._disk.get(mine.label) if mine.uid not in message.view.voters else None
            self._views[name] = Views.agent(mine, message.view, self._uid(head), vote=vote, min_agents=self._min_agents)
            self._do(name, self._views[name].begin())

    def _to(self, name: str, kind: str, *what: object) -> None:
        self._do(name, getattr(self._views[name], kind)(*what))

    # Effects

    def _do(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._mail.append((name, self._name(effect.uid), effect.message))
            if isinstance(effect, Save):
                self._disk[self._seat(name).label] = effect.vote
                continue
            self._lines.append(f"{name}: {self._effect(effect)}")

    def _effect(self, effect: Effect) -> str:
        match effect:
            case Send(uid, message):
                return f"to {self._name(uid)} {self._message(message)}"
            case Dial(seat):
                return f"dial {self._name(seat.uid)}"
            case Drop(uid):
                return f"drop {self._name(uid)}"
            case Freeze(number):
                return f"freeze view {number}"
            case Install(view):
                return f"install {self._shown(view)}"
            case Timer(name, seconds):
                return f"timer {name} in {seconds:g} s"
            case Suspected(uid, _, what, why):
                return f"suspect {self._name(uid)} ({what}: {why})"
            case Say(text):
                return f"say {text}"
            case Out(why) | Deny(why):
                return f"{type(effect).__name__.lower()}: {why}"
            case Hold() | Knock() | Over() | Dismiss():
                return type(effect).__name__.lower()
            case _:
                raise AssertionError(f"no such effect: {effect}")

    def _message(self, message: Message) -> str:
        fields = (self._shown(getattr(message, name)) for name in message.__struct_fields__)
        return " ".join([type(message).__name__, *(field for field in fields if field)])

    def _shown(self, value: object) -> str:
        """A value, in few words."""
        match value:
            case None:
                return ""
            case View():
                seats = " ".join(self._name(seat.uid) + ("" if seat.healed else "*") for seat in value.seats)
                voters = " ".join(map(self._name, value.voters))
                head = f"view {value.number} [{seats}] of {self._name(value.leader)}, voters {voters}"
                return f"{head}, entry {value.entry} ({value.why})"
            case Ballot():
                return f"{value.turn}.{self._name(value.uid)}"
            case Seat():
                return self._name(value.uid)
            case Vote():
                return f"<{self._name(value.uid)} accepted {self._shown(value.accepted) or 'nothing'}>"
            case Report():
                done = "".join(map(str, value.done)) or "-"
                flags = " fence" * value.fence + " unhealed" * (not value.healed)
                return f"(round {value.round} done {done}{flags})"
            case msgspec.Struct():
                return self._message(value)  # type: ignore[arg-type]
            case int() if value > 10_000:
                return self._name(value)
            case _:
                return str(value)

    # Names

    def _uid(self, name: str) -> int:
        if name not in self._uids:
            self._uids[name] = 10_001 + 100 * (_KINDS.index(name[0])) + int(name[1:] or 0)
        return self._uids[name]

    def _name(self, uid: int) -> str:
        kind, number = divmod(uid - 10_001, 100)
        return "f" if kind == 0 else f"{_KINDS[kind]}{number}"

    def _seat(self, name: str) -> Seat:
        serves = name[0] in "st"
        label = FOUNDER if name == "f" else int(name[1:]) + FIRST_SERVER * serves
        return Seat(self._uid(name), label, "here", self._uid(name), (), (f"at:{name}",), serves=serves)
