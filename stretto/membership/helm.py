"""At the helm: who comes and who goes, and having the next view decided."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from msgspec.structs import replace

from stretto.membership.compose import following, listed, lowest_free, named
from stretto.membership.effects import (
    Dial,
    Dismiss,
    Knock,
    Over,
    Say,
)
from stretto.membership.follower import LONGEST_PAUSE, Follower
from stretto.membership.founding import taken
from stretto.membership.messages import (
    FOUNDER,
    STORE,
    UNNUMBERED,
    Accepted,
    Ballot,
    Decide,
    Expect,
    Fence,
    Finished,
    Hello,
    Leave,
    Message,
    Nack,
    Prepare,
    Promise,
    Propose,
    Ready,
    Seat,
    Suspect,
    View,
    Vote,
)
from stretto.membership.standing import NO_BALLOT
from stretto.membership.votes import Proposal, accept, bound, majority, promise

GRACE: Final = 1.0
OVER: Final = "the run is over: all its agents have finished; start a new one"
_PROBES: Final = 8


class Helm(Follower, ABC):
    """The part of a :class:`~stretto.membership.views.Views` that leads."""

    @abstractmethod
    def _act(self) -> None: ...

    def _wants_change(self) -> bool:
        """A change that has begun anywhere must end: some are frozen."""
        begun = self._highest > NO_BALLOT or bool(self._asked)
        comes = any(seat.serves for seat in self._newcomers())
        return begun or comes or self.view.leader != self.me or not self._members.isdisjoint(self._suspected)

    def _heard_as_head(self, uid: int, message: Message) -> None:
        match message:
            case Promise():
                self._on_promise(uid, message)
            case Nack():
                self._on_nack(uid, message)
            case Accepted():
                self._on_accepted(uid, message)
            case Ready():
                self._ready[uid] = message.brought
            case Leave():
                self._on_leave(uid, message.vote)
            case Fence() if self._at_helm and uid in self._members:
                self._ask("")
            case Suspect() if self._at_helm:
                self._complain(uid, message.uid, message.why)
            case _:
                pass

    def _welcome(self, uid: int, hello: Hello) -> None:
        if uid not in self._members and hello.seat.label != FOUNDER:
            if self.view.leader != self.me and hello.vote is None:
                return
            why = self._objection(uid, hello.seat.label)
            if why:
                self._deny(uid, why)
                return
            self._number(uid, hello)
            if hello.vote is not None:
                self._lent[uid] = hello.vote
        del self._guests[uid]
        if hello.view != self.view.number:
            self._send(uid, Decide(self.view))
        self._update(uid)

    def _objection(self, uid: int, label: int) -> str | None:
        if self._is_over():
            return OVER
        for other in self._company():
            lives = other.uid == self.me or (other.uid in self._connected and other.uid not in self._suspected)
            if other.uid != uid and other.label == label >= 0 and lives:
                return taken(other)
        return None

    def _number(self, uid: int, hello: Hello) -> None:
        """Its label, and what that says about who had it before."""
        label = hello.seat.label
        if label == UNNUMBERED:
            others = {other.label for other in self._company() if other.uid != uid}
            label = lowest_free(others, serves=hello.seat.serves)
        self._known[uid] = replace(hello.seat, label=label)
        for other in self.view.seats:
            if other.label == label and other.uid != uid and other.uid not in self._suspected:
                self._suspect(other.uid, f"it came back as process {hello.seat.pid}")

    def _newcomers(self) -> list[Seat]:
        """Those who may enter the next view, if it admits anybody."""
        members = self._members - set(self._suspected)
        waiting = [
            self._known[uid]
            for uid in self._connected - self._members
            if uid in self._ready and uid in self._known and not self._complaints.parted(uid, members)
        ]
        return sorted((seat for seat in waiting if seat.label >= 0), key=lambda seat: seat.label)

    def _turn_away(self, brought: str) -> None:
        """Newcomers that train something else."""
        for seat in self._newcomers():
            if self._ready[seat.uid] != brought and not seat.serves:
                self._deny(
                    seat.uid,
                    f"{named(seat.label)} brings another model, optimizer or strategy than the run has: "
                    "start it with the same script",
                )

    def _update(self, uid: int) -> None:
        """Say again to one who has come what it may have missed."""
        proposal = self._proposal
        if proposal is not None and proposal.view is None:
            self._ask_to_promise(proposal, uid)
        elif proposal is not None and proposal.view is not None:
            self._ask_to_accept(proposal, uid)
        elif self._expect_sent and uid in self._members:
            self._send(uid, Expect())

    def _send_expect(self) -> None:
        if self._expect_sent:
            return
        if any(not seat.serves for seat in self._newcomers()):
            self._expect_sent = True
            for uid in sorted(self._connected & self._members):
                self._send(uid, Expect())
            self._expect()

    def _complain(self, by: int, about: int, why: str) -> None:
        """``by`` lost ``about``: is that one gone, or is it the connection between the two?"""
        if about not in self._members or by not in self._members or about in self._suspected:
            return
        if about != self.me and about not in self._connected:
            self._suspect(about, "it left" if about in self._left else why)
            return
        if about in self._left:
            self._suspected[about] = "it left"
            return
        ranks = {seat.uid: rank for rank, seat in enumerate(self.view.seats)}
        pair = self._complaints.note(by, about, self.view.number)
        if pair is not None and self._proposal is None:
            worse = self._complaints.worse(pair, lambda uid: -1 if uid == self.me else ranks[uid])
            if worse == self.me:  # who leads stays: nobody else can propose a view without it
                (worse,) = pair - {self.me}
            self._suspect(worse, f"{listed([self._label(uid) for uid in pair])} cannot reach each other")
        elif self._proposal is None:
            self._ask(f"the connection of {listed([self._label(by), self._label(about)])} broke ({why})")

    def _on_leave(self, uid: int, vote: Vote | None) -> None:
        self._left.add(uid)
        if not self._at_helm or vote is None or vote.uid != uid or vote.uid not in self.view.voters:
            return
        if vote.number == self.view.number + 1 and uid not in self._hands:
            self._hands[uid] = vote
            if self._proposal is not None:
                self._vote_here(self._proposal, vote)

    def _miss_who_left(self) -> None:
        for uid in self._left & self._members - self._connected - {self.me}:
            self._suspected.setdefault(uid, "it left")

    def _end(self) -> None:
        self._proposal = None
        for uid in sorted(self._connected - self._members):
            if self._label(uid) != FOUNDER:
                self._deny(uid, OVER)
        if not self._over:
            self._over = True
            self._out.append(Over())
        if self._agents <= self._left:
            self._dismiss()
        elif len(self._agents) < len(self._members):
            self._arm(f"over {self.view.number}", GRACE)  # some agent may only be cut off

    def _dismiss(self) -> None:
        """Servers may go."""
        for uid in sorted(self._members - self._agents - self._dismissed):
            if uid == self.me:
                self._out.append(Dismiss())
            self._send(uid, Finished())
            self._dismissed.add(uid)

    @property
    def _proposal_name(self) -> str:
        assert self._proposal is not None
        return f"{self._proposal.base.number}.{self._proposal.ballot.turn}"

    def _propose(self) -> None:
        seen = [vote.promised for vote in self._votes() if vote.promised is not None]
        self._highest = Ballot(max([self._highest, *seen]).turn + 1, self.me)
        self._proposal = proposal = Proposal(self.view, self._highest)
        for vote in self._votes():
            self._vote_here(proposal, vote)
        for uid in sorted(self._asked_here):
            self._ask_to_promise(proposal, uid)
        self._note_own_report(proposal)
        self._arm(f"stuck {self._proposal_name}", self._stuck)
        self._advance(proposal)

    def _votes(self) -> list[Vote]:
        """The votes that we cast: our own, and those of members that left."""
        own = self._own_vote()
        return ([own] if own is not None else []) + list(self._hands.values())

    def _vote_here(self, proposal: Proposal, vote: Vote) -> None:
        """Cast one of our votes for our own proposal."""
        if proposal.view is None:
            promised = promise(vote, proposal.ballot)
            if promised is not None:
                self._keep(promised)
                proposal.votes[vote.uid] = promised
        else:
            accepted = accept(vote, proposal.ballot, proposal.view)
            if accepted is not None:
                self._keep(accepted)
                proposal.accepted.add(vote.uid)

    def _takes_part(self, uid: int) -> bool:
        return uid in self._members or uid in self.view.voters or uid in self._standins.values()

    def _ask_to_promise(self, proposal: Proposal, uid: int) -> None:
        if self._takes_part(uid):
            self._send(uid, Prepare(proposal.base, proposal.ballot))

    def _ask_to_accept(self, proposal: Proposal, uid: int) -> None:
        assert proposal.view is not None
        if self._takes_part(uid):
            self._send(uid, Propose(proposal.ballot, proposal.view))

    def _note_own_report(self, proposal: Proposal) -> None:
        if self.me not in self._members:
            return
        if self._report is None:
            self._freeze()
        else:
            proposal.reports[self.me] = self._report
            proposal.answered.add(self.me)

    def _unanswered(self, proposal: Proposal) -> set[int]:
        """Those that are well and have not reported yet: the next view waits for them."""
        asked = (self._members | set(self.view.voters)) & (self._asked_here | {self.me})
        if self.me not in self._members:
            asked.discard(self.me)
        return asked - proposal.answered - set(self._suspected)

    def _advance(self, proposal: Proposal) -> None:
        if proposal.view is None:
            if not proposal.promised or self._unanswered(proposal):
                return
            view = bound(proposal.votes.values()) or self._compose(proposal)
            if view is None:
                return
            proposal.propose(view)
            for vote in self._votes():
                self._vote_here(proposal, vote)
            for uid in sorted(self._asked_here):
                self._ask_to_accept(proposal, uid)
        if proposal.decided and proposal.view is not None:
            self._decide(proposal.view)
            self._act()

    def _compose(self, proposal: Proposal) -> View | None:
        reports = {uid: r for uid, r in proposal.reports.items() if uid not in self._suspected}
        trained = self._agents & reports.keys()
        if trained:
            self._turn_away(reports[min(trained)].brought)
        founder = self.view.founder
        return following(
            self.view,
            reports,
            self._newcomers(),
            proposer=self.me,
            founder=founder is not None and (founder.uid == self.me or founder.uid in self._connected),
            why=self._why(),
        )

    def _why(self) -> str:
        words = [f"{self._name(uid)} was lost: {why}" for uid, why in self._suspected.items() if why != "it left"]
        gone = [self._label(uid) for uid, why in self._suspected.items() if why == "it left"]
        words += [f"{listed(gone)} left"] if gone else []
        words += [f"{listed([seat.label for seat in self._newcomers()])} may come in"] if self._newcomers() else []
        return "; ".join(words) or self._asked or "the last one's leader is gone"

    def _open(self, view: View) -> None:
        """The first view: ours alone to decide, unless a store has the vote."""
        if STORE not in self.view.voters:
            self._decide(view)
            return
        self._proposal = Proposal(self.view, self._highest)
        self._proposal.propose(view)
        self._ask_to_accept(self._proposal, STORE)

    def _decide(self, view: View) -> None:
        for uid in sorted(self._connected):
            self._send(uid, Decide(view))
        self._install(view)

    def _on_promise(self, uid: int, message: Promise) -> None:
        proposal = self._proposal
        if proposal is None or not proposal.is_answered_by(message) or proposal.view is not None:
            return
        proposal.answered.add(uid)
        vote, report = message.vote, message.report
        if vote is not None and vote.number == proposal.base.number + 1 and vote.uid in self._represented(uid):
            proposal.votes[vote.uid] = vote
        if report is not None and report.uid == uid and uid in self._members:
            proposal.reports[uid] = report

    def _on_accepted(self, uid: int, message: Accepted) -> None:
        proposal = self._proposal
        if proposal is not None and proposal.is_answered_by(message) and proposal.view is not None:
            proposal.answered.add(uid)
            proposal.accepted |= self._represented(uid)

    def _represented(self, uid: int) -> set[int]:
        """The voters whose votes ``uid`` casts."""
        return {voter for voter in self.view.voters if voter == uid or self._standins.get(voter) == uid}

    def _on_nack(self, uid: int, message: Nack) -> None:
        if message.number <= self.view.number:
            self._send(uid, Decide(self.view))
        if message.number != self.view.number + 1:
            return
        self._highest = max(self._highest, message.promised)
        if self._proposal is not None and message.promised > self._proposal.ballot:
            self._back_off(message.promised)

    def _back_off(self, promised: Ballot) -> None:
        """Another proposer is ahead: leave it time to finish, each of us another."""
        place = self._succession().index(self.me) if self.me in self._succession() else 0
        self._proposal = None
        self._highest = max(self._highest, promised)
        self._backing_off = True
        self._arm(f"backoff {self.view.number}.{self._highest.turn}", 0.3 + 0.2 * place)

    def _unstick(self, proposal: Proposal) -> None:
        """Say whom everybody waits for, look for them, and go on without them where the user allows that."""
        if self._may_go_on(proposal):
            view = proposal.view or bound(proposal.votes.values()) or self._compose(proposal)
            if view is not None:
                self._out.append(
                    Say(f"training goes on with {len(view.agents)} agents and without a majority, as asked")
                )
                self._decide(view)
                return
        self._out.append(Say(self._lament(proposal)))
        self._probe()
        self._stuck = min(2 * self._stuck, LONGEST_PAUSE)
        self._arm(f"stuck {self._proposal_name}", self._stuck)

    def _may_go_on(self, proposal: Proposal) -> bool:
        well = self._agents & proposal.reports.keys() - self._suspected.keys()
        return self._min_agents is not None and len(well) >= self._min_agents and not self._unanswered(proposal)

    def _lament(self, proposal: Proposal) -> str:
        slow = self._unanswered(proposal) if proposal.view is None else set()
        if slow:
            return f"training waits for {listed([self._label(uid) for uid in slow])} to say how far it came"
        here, need, voters = len(proposal.here), majority(self.view.voters), len(self.view.voters)
        if here >= need:
            absent = [seat.label for seat in self.view.agents if seat.uid not in proposal.reports and seat.healed]
            return f"training waits for one of {listed(absent)}: nobody that is here has the model; start them again"
        absent = [self._label(uid) for uid in self.view.voters if uid not in proposal.here]
        agents = max(1, len(self._agents & proposal.reports.keys()))
        return (
            f"training waits for {listed(absent)}: {here} of {voters} votes are here, {need} are needed; "
            f"start them again, or use --min-agents {agents}"
        )

    def _probe(self) -> None:
        """Dial some of those that are not here, in turn: they may be waiting for us."""
        others = [uid for uid in self._succession() if uid != self.me and uid not in self._connected]
        for at in range(min(_PROBES, len(others))):
            seat = self._seat(others[(self._probed + at) % len(others)])
            if seat is not None:
                self._out.append(Dial(seat))
        self._probed += _PROBES
        self._out.append(Knock())
