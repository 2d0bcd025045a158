"""Where a process stands: who is here, who is lost, whom it looks to, what it promised. State, and questions to it."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from stretto.membership.complaints import Complaints
from stretto.membership.compose import named
from stretto.membership.effects import (
    Drop,
    Effect,
    Say,
    Send,
    Suspected,
    Timer,
)
from stretto.membership.founding import Founding
from stretto.membership.messages import (
    FOUNDER,
    STORE,
    UNNUMBERED,
    Ballot,
    Denied,
    Hello,
    Message,
    Report,
    Seat,
    View,
    Vote,
)
from stretto.membership.votes import Proposal, blank

NO_BALLOT: Final = Ballot(0, 1)
SHORTEST_PAUSE: Final = 0.25
STUCK: Final = 2.0


def since(view: View) -> int:
    """The first round in which one that enters with ``view`` takes part."""
    return 0 if view.number <= 1 else view.entry


class Standing:
    """What the parts of :class:`~stretto.membership.views.Views` share."""

    def __init__(self, seat: Seat, view: View, size: int, vote: Vote | None, min_agents: int | None) -> None:
        self.me = seat.uid
        self.seat = seat
        self.view = view
        self._size = size
        self._min_agents = min_agents
        self._founding: Founding | None = None
        self._out: list[Effect] = []
        self._armed: set[str] = set()
        # the company
        self._known: dict[int, Seat] = {s.uid: s for s in view.seats}
        self._connected: set[int] = set()
        self._greeted: set[int] = set()
        self._suspected: dict[int, str] = {}
        self._guests: dict[int, Hello] = {}
        self._ready: dict[int, str] = {}
        self._left: set[int] = set()
        self._complaints = Complaints()
        # our way to the head
        self._following = 0
        self._hint = 0
        self._resting = False
        self._hops = 0
        self._pause = SHORTEST_PAUSE
        self._alone = 0.0
        # our vote, and those that others gave us
        self._vote = vote
        self._lent: dict[int, Vote] = {}
        self._hands: dict[int, Vote] = {}
        # what our courier told
        self._brought: str | None = None
        self._lost: dict[int, str] = {}
        self._leaving = False
        self._held: int | None = None
        # this view's end
        self._expecting = False
        self._expect_sent = False
        self._frozen = False
        self._report: Report | None = None
        self._since = since(view)
        self._asked_by: tuple[int, Ballot] | None = None
        self._asked = ""
        self._highest = NO_BALLOT
        self._proposal: Proposal | None = None
        self._backing_off = False
        self._stuck = STUCK
        self._probed = 0
        self._over = False
        self._dismissed: set[int] = set()

    @property
    def greeting(self) -> Hello:
        """Our first word on a connection that we dial, now."""
        vote = replace(self._vote, base=self.view) if self._vote is not None and self._stands_in else None
        return Hello(self.seat, self._size, self.view.number, vote)

    @property
    def inside(self) -> bool:
        """Are we a member of the view?"""
        return self.me in self._members

    @property
    def _members(self) -> set[int]:
        return {seat.uid for seat in self.view.seats}

    @property
    def _at_helm(self) -> bool:
        return self._head() == self.me

    @property
    def _stands_in(self) -> bool:
        return self._vote is not None and self._vote.uid != self.me

    def _head(self) -> int:
        """Whom we look to: the first that is not lost; 0 while there is none."""
        if self._resting:
            return 0
        return next((uid for uid in self._succession() if uid not in self._suspected), 0)

    def _succession(self) -> list[int]:
        hint = [self._hint] if self._hint else []
        return list(dict.fromkeys([*hint, self.view.leader, *(seat.uid for seat in self.view.seats)]))

    def _missing(self) -> list[int]:
        """Members that are neither here nor known to be lost."""
        here = self._connected | self._left | {self.me}
        return [s.uid for s in self.view.seats if s.uid not in here and s.uid not in self._suspected]

    def _name(self, uid: int) -> str:
        return named(self._label(uid))

    def _label(self, uid: int) -> int:
        if self.view.founder is not None and uid == self.view.founder.uid:
            return FOUNDER
        if uid == self.me:
            return self.seat.label
        return self._known[uid].label if uid in self._known else UNNUMBERED

    def _seat(self, uid: int) -> Seat | None:
        if self.view.founder is not None and uid == self.view.founder.uid:
            return self.view.founder
        return self.seat if uid == self.me else self._known.get(uid)

    def _own_vote(self) -> Vote | None:
        """Ours, or our predecessor's, in the decision on the next view."""
        vote, number = self._vote, self.view.number + 1
        if vote is None or vote.uid not in self.view.voters or vote.number > number:
            return None
        return replace(vote, base=None) if vote.number == number else blank(vote.uid, number)

    @property
    def _standins(self) -> dict[int, int]:
        """Voters that are gone, and the processes that cast their votes."""
        number = self.view.number + 1
        return {
            vote.uid: uid
            for uid, vote in self._lent.items()
            if vote.uid in self.view.voters and vote.uid not in self._connected and vote.number <= number
        }

    def _company(self) -> list[Seat]:
        """Members, and newcomers that are here."""
        others = [self._known[uid] for uid in sorted(self._connected - self._members) if uid in self._known]
        return [*self.view.seats, *others]

    @property
    def _agents(self) -> set[int]:
        return {seat.uid for seat in self.view.agents}

    def _is_over(self) -> bool:
        here = self._agents & (self._connected | {self.me}) - self._left
        return bool(self._left & self._agents) and not here

    def _arrived(self, uid: int) -> None:
        self._connected.add(uid)
        self._dismissed.discard(uid)
        self._suspected.pop(uid, None)
        self._alone = 0.0

    def _suspect(self, uid: int, why: str, what: str = "closed") -> None:
        if uid not in self._suspected and uid != self.me:
            self._suspected[uid] = why
            self._out.append(Suspected(uid, self._label(uid), what, why))

    def _deny(self, uid: int, why: str) -> None:
        self._send(uid, Denied(why))
        self._drop(uid)
        self._out.append(Say(f"denied {self._name(uid)}: {why}"))

    @property
    def _asked_here(self) -> set[int]:
        """Those that a proposal is sent to; a store is asked, and never met."""
        return self._connected | ({STORE} & set(self.view.voters))

    def _send(self, uid: int, message: Message) -> None:
        if uid in self._connected or uid == STORE:
            self._out.append(Send(uid, message))

    def _drop(self, uid: int) -> None:
        self._guests.pop(uid, None)
        self._ready.pop(uid, None)
        self._greeted.discard(uid)
        if uid in self._connected:
            self._connected.discard(uid)
            self._out.append(Drop(uid))

    def _arm(self, name: str, seconds: float) -> None:
        if name not in self._armed:
            self._armed.add(name)
            self._out.append(Timer(name, seconds))
