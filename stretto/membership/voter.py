"""As a voter and a member, whoever is at the helm: to freeze, to promise, to accept, to install, to tell the head."""

from __future__ import annotations

from abc import ABC, abstractmethod

from msgspec.structs import replace

from stretto.membership.effects import (
    Freeze,
    Hold,
    Install,
    Out,
    Save,
)
from stretto.membership.messages import (
    Accepted,
    Ballot,
    Decide,
    Fence,
    Leave,
    Nack,
    Prepare,
    Promise,
    Propose,
    Ready,
    Suspect,
    View,
    Vote,
)
from stretto.membership.standing import NO_BALLOT, SHORTEST_PAUSE, STUCK, Standing, since
from stretto.membership.votes import accept, blank, promise


class Voter(Standing, ABC):
    """The part of a :class:`~stretto.membership.views.Views` that answers."""

    @abstractmethod
    def _back_off(self, promised: Ballot) -> None: ...

    def _on_prepare(self, uid: int, message: Prepare) -> None:
        if message.base.number < self.view.number:
            self._send(uid, Decide(self.view))
            return
        if message.base.number > self.view.number:
            self._install(message.base)
        vote = self._own_vote()
        if vote is not None:
            promised = promise(vote, message.ballot)
            if promised is None:
                assert vote.promised is not None
                self._send(uid, Nack(vote.number, vote.promised))
                return
            self._keep(promised)
        self._asked_by = (uid, message.ballot)
        self._highest = max(self._highest, message.ballot)
        if self.me in self._members and self._report is None:
            self._freeze()
        else:
            self._answer(uid, message.ballot)

    def _freeze(self) -> None:
        if not self._frozen:
            self._frozen = True
            self._out.append(Freeze(self.view.number))

    def _answer(self, uid: int, ballot: Ballot) -> None:
        vote = self._own_vote()
        if vote is None and self._report is None:
            return
        if vote is not None and vote.promised != ballot:
            return
        self._send(uid, Promise(self.view.number + 1, ballot, vote, self._report))

    def _on_propose(self, uid: int, message: Propose) -> None:
        if message.view.number <= self.view.number:
            self._send(uid, Decide(self.view))
            return
        vote = self._own_vote()
        if vote is None or message.view.number != self.view.number + 1:
            return
        accepted = accept(vote, message.ballot, message.view)
        if accepted is not None:
            self._keep(accepted)
            self._send(uid, Accepted(vote.number, message.ballot))
        elif vote.promised is not None:
            self._send(uid, Nack(vote.number, vote.promised))

    def _on_decide(self, uid: int, view: View) -> None:
        if view.number < self.view.number:
            self._send(uid, Decide(self.view))
        elif view.number > self.view.number or _outweighs(view, self.view):
            self._install(view)

    def _install(self, view: View) -> None:
        was_in = self.me in self._members
        gone = self._members - {seat.uid for seat in view.seats}
        self.view = view
        self._known |= {seat.uid: seat for seat in view.seats}
        self._forget_last_view(gone)
        if self.me in view.voters:
            self._cast(view)
        if self.me in self._members:
            self.seat = next(seat for seat in view.seats if seat.uid == self.me)
            self._brought = None
            self._since = self._since if was_in else since(view)
            self._out.append(Install(view))
        elif was_in:
            self.seat = replace(self.seat, healed=False)
            self._out.append(Out(f"the others went on without us in view {view.number}: {view.why}"))
        if self._following in self._connected and self._following == view.leader:
            self._tell_head()

    def _cast(self, view: View) -> None:
        """A fresh vote of our own; who has said goodbye has none."""
        self._vote = blank(self.me, view.number + 1)
        if not self._leaving:
            self._out.append(Save(replace(self._vote, base=view)))

    def _forget_last_view(self, gone: set[int]) -> None:
        for uid in gone:
            self._complaints.forget(uid)
            self._left.discard(uid)
        leads = self.view.leader == self.me
        self._suspected = {
            uid: why
            for uid, why in self._suspected.items()
            if leads and uid in self._members and uid not in self._connected
        }
        for uid in self._members:
            self._ready.pop(uid, None)
            self._lent.pop(uid, None)
        self._hands, self._lost = {}, {}
        self._hint, self._resting, self._hops, self._pause = 0, False, 0, SHORTEST_PAUSE
        self._expecting = self._expect_sent = self._frozen = self._backing_off = False
        self._report, self._asked_by, self._held, self._proposal = None, None, None, None
        self._asked, self._highest, self._stuck = "", NO_BALLOT, STUCK

    def _keep(self, vote: Vote) -> None:
        if vote.uid in self._hands:
            self._hands[vote.uid] = vote
            return
        self._vote = vote
        self._out.append(Save(replace(vote, base=self.view)))
        if self._proposal is not None and vote.promised is not None and vote.promised > self._proposal.ballot:
            self._back_off(vote.promised)

    def _tell_head(self) -> None:
        """Say to the head what is still open."""
        head = self._following
        if self._brought is not None:
            self._send(head, Ready(self._brought))
        for uid, why in self._lost.items():
            self._send(head, Suspect(uid, why))
        if self._held is not None:
            self._send(head, Fence(self._held))
        if self._highest > NO_BALLOT:
            self._send(head, Nack(self.view.number + 1, self._highest))
        if self._leaving:
            self._say_leave()

    def _say_leave(self) -> None:
        vote = self._own_vote()
        self._vote = None
        self._send(self._following, Leave(vote))

    def _expect(self) -> None:
        if self.me in self._members and not self._expecting and not self._frozen:
            self._expecting = True
            self._out.append(Hold())

    def _say_held(self) -> None:
        assert self._held is not None
        if self._at_helm:
            self._ask("")
        elif self._following in self._connected:
            self._send(self._following, Fence(self._held))

    def _ask(self, why: str) -> None:
        self._asked = self._asked or why or "a fence"


def _outweighs(view: View, other: View) -> bool:
    """Of two views of one number, which only ``min_agents`` can make, the larger one stays."""
    return view.number == other.number and (len(view.seats), -view.leader) > (len(other.seats), -other.leader)
