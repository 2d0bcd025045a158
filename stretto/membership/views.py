"""Who is in, who leads, and what comes next: membership as a state machine without I/O or clock. Events in, effects out.

Theory of operation. Everybody keeps one control connection, to its *head*: the view's leader, or, where that is lost, the
first of the members in rank order that is not. Who finds itself to be the head is *at the helm*: the others dial it, and
after a little patience it freezes them, collects what they report, and has the voters of the view decide on the next one
(:mod:`~stretto.membership.votes`, :mod:`~stretto.membership.compose`). A death, a leaver and a newcomer are the same
transition. Suspicion is only ever a reason to propose: a wrong one costs a view, never agreement.

Every event changes the state and then asks one question again (``_act``): what does the state as it is now want? So an
event that comes twice, late or in another order needs no case of its own. Messages may be lost when a connection breaks;
whoever meets again says again what is still open (``_update``, ``_tell_head``).
"""

from __future__ import annotations

from typing import Final, Self

from msgspec.structs import replace

from stretto.core import Network
from stretto.membership.complaints import Complaints
from stretto.membership.compose import first, following, listed, lowest_free, named, nowhere
from stretto.membership.effects import (
    Deny,
    Dial,
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
from stretto.membership.founding import Founding, taken
from stretto.membership.messages import (
    FOUNDER,
    UNNUMBERED,
    Accepted,
    Ballot,
    Decide,
    Denied,
    Elsewhere,
    Expect,
    Fence,
    Hello,
    Leave,
    Message,
    Nack,
    Prepare,
    Promise,
    Propose,
    Ready,
    Report,
    Seat,
    Suspect,
    View,
    Vote,
    Waiting,
)
from stretto.membership.votes import Proposal, accept, blank, bound, majority, promise

PATIENCE: Final = 1.5
"""Seconds in which members must have come to a new head before it goes on without them."""
_GUEST: Final = 2.0
_GRACE: Final = 1.0
_STUCK: Final = 2.0
_REMIND: Final = 5.0
_LONGEST_PAUSE: Final = 10.0
_SHORTEST_PAUSE: Final = 0.25
_PROBES: Final = 8
_NO_BALLOT: Final = Ballot(0, 1)
_OVER: Final = "the run is over: all its agents have finished; start a new one"


class Views:
    """One process's part in the chain of views; made by :meth:`founder` or :meth:`agent`.

    Every event method returns the effects it asks for, in order.
    """

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
        self._pause = _SHORTEST_PAUSE
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
        self._since = _since(view)
        self._asked_by: tuple[int, Ballot] | None = None
        self._asked = ""
        self._highest = _NO_BALLOT
        self._proposal: Proposal | None = None
        self._backing_off = False
        self._stuck = _STUCK
        self._probed = 0
        self._over = False

    @classmethod
    def founder(cls, seat: Seat, size: int, network: Network, min_agents: int | None = None) -> Self:
        """A coordinator that is a process apart: it calls the first view of ``size`` agents together."""
        views = cls(seat, nowhere(seat, network), size, None, min_agents)
        views._founding = Founding(size)
        return views

    @classmethod
    def agent(
        cls,
        seat: Seat,
        view: View,
        head: int,
        *,
        size: int = 1,
        vote: Vote | None = None,
        min_agents: int | None = None,
    ) -> Self:
        """An agent that has entered: ``view`` has it as a member, or it is a newcomer at the door of ``view``.

        Args:
            head: who told us, on the control connection that we have.
            vote: of the process that had our label before us, where it left one.
        """
        views = cls(seat, view, size, vote, min_agents)
        views._connected.add(head)
        views._greeted.add(head)
        views._following = head
        views._hint = head if head != view.leader else 0
        return views

    # Events.

    def begin(self) -> list[Effect]:
        """The first event. The view that we came with is not installed again."""
        if self._founding is not None:
            self._arm("remind", _REMIND)
            return self._done()
        if self.me in self.view.voters:
            self._cast(self.view)
        if self._vote is not None and self._vote.base is not None and self._vote.base.number > self.view.number:
            self._install(self._vote.base)
        return self._done()

    @property
    def greeting(self) -> Hello:
        """Our first word on a connection that we dial, now."""
        vote = replace(self._vote, base=self.view) if self._vote is not None and self._stands_in else None
        return Hello(self.seat, self._size, self.view.number, vote)

    def hello(self, hello: Hello) -> list[Effect]:
        """A process dialed us, proved the secret and ``hello.seat.uid``, and said this."""
        uid = hello.seat.uid
        if uid in self._members or uid not in self._known or self._known[uid].label < 0:
            self._known[uid] = hello.seat
        self._arrived(uid)
        self._greeted.discard(uid)
        if hello.vote is not None and hello.vote.base is not None and self._founding is None:
            self._on_decide(uid, hello.vote.base)
        if uid == self._following and self._following != self.me:
            if hello.view > self.view.number:
                self._send(uid, Decide(self.view))
            self._tell_head()
        else:
            self._guests[uid] = hello
        return self._done()

    def met(self, uid: int) -> list[Effect]:
        """The control connection that we dialed is up, and our greeting has gone out on it."""
        self._arrived(uid)
        self._greeted.add(uid)
        if self._at_helm:
            self._update(uid)
        elif uid == self._head():
            self._following = uid
            self._tell_head()
            self._send_guests_to_head()
        elif self._following in self._connected:
            self._drop(uid)
        else:
            self._resting, self._hint = False, uid
        return self._done()

    def lost(self, uid: int, why: str, what: str = "closed") -> list[Effect]:
        """A control connection is gone, or could not be made; ``what``, in one word, and ``why``."""
        self._connected.discard(uid)
        self._greeted.discard(uid)
        self._guests.pop(uid, None)
        if self._founding is not None:
            self._founding.here.pop(uid, None)
        if uid in self._left and uid in self._members:
            self._arm(f"left {self.view.number}", _GRACE)
        elif uid == self._following or (uid in self._members and self._at_helm):
            self._suspect(uid, why, what)
        if uid not in self._members:
            self._ready.pop(uid, None)
            self._lent.pop(uid, None)
        if uid == self._following:
            self._following = 0
        if self._hint == uid:
            self._hint = 0
        return self._done()

    def heard(self, uid: int, message: Message) -> list[Effect]:
        """A message on the control connection with ``uid``."""
        match message:
            case Prepare():
                self._on_prepare(uid, message)
            case Promise():
                self._on_promise(uid, message)
            case Nack():
                self._on_nack(uid, message)
            case Propose():
                self._on_propose(uid, message)
            case Accepted():
                self._on_accepted(uid, message)
            case Decide():
                self._on_decide(uid, message.view)
            case Ready():
                self._ready[uid] = message.brought
            case Expect():
                self._expect()
            case Fence() if self._at_helm and uid in self._members:
                self._ask("")
            case Suspect() if self._at_helm:
                self._complain(uid, message.uid, message.why)
            case Leave():
                self._on_leave(uid, message.vote)
            case Elsewhere() if uid == self._following:
                self._on_elsewhere(message.leader)
            case Denied():
                self._out.append(Deny(message.why))
            case _:
                pass
        return self._done()

    def suspect(self, uid: int, why: str) -> list[Effect]:
        """Our courier lost this member while exchanging with it."""
        if self.me in self._members and not self._frozen:
            self._lost[uid] = why
            if self._at_helm:
                self._complain(self.me, uid, why)
            elif self._following in self._connected:
                self._send(self._following, Suspect(uid, why))
        return self._done()

    def ready(self, brought: str) -> list[Effect]:
        """We are at the door and have reached our first fence; ``brought`` digests what we train."""
        if self.me not in self._members:
            self._brought = brought
            if self._following in self._connected:
                self._send(self._following, Ready(brought))
        return self._done()

    def fence(self, round: int) -> list[Effect]:
        """Our trainer is at this fence round; after :class:`~stretto.membership.effects.Hold` it stays there."""
        if self._expecting and not self._frozen:
            self._held = round
            self._say_held()
        return self._done()

    def frozen(self, number: int, report: Report) -> list[Effect]:
        """All exchanges of view ``number`` have ended; this is how far we came."""
        if number == self.view.number and self._report is None:
            self._report = replace(report, since=self._since)
            if self._proposal is not None:
                self._note_own_report(self._proposal)
            if self._asked_by is not None:
                self._answer(*self._asked_by)
        return self._done()

    def leave(self) -> list[Effect]:
        """We have finished, and all is well."""
        self._leaving = True
        self._left.add(self.me)
        self._out.append(Save(None))
        if self._following in self._connected:
            self._say_leave()
        return self._done()

    def timer(self, name: str) -> list[Effect]:
        """A timer that we asked for is due."""
        self._armed.discard(name)
        kind, _, what = name.partition(" ")
        match kind:
            case "remind" if self._founding is not None:
                self._remind(self._founding)
            case "patience" if what == str(self.view.number) and self._at_helm:
                for uid in self._missing():
                    self._suspect(uid, "it did not come", "cut")
            case "left" if what == str(self.view.number):
                self._miss_who_left()
            case "guest":
                self._see_off(int(what))
            case "again":
                self._wake(int(what))
            case "backoff":
                self._backing_off = False
            case "stuck" if self._proposal is not None and what == self._proposal_name:
                self._unstick(self._proposal)
            case _:
                pass
        return self._done()

    # What others may ask.

    def present(self) -> int:
        """Agents that are here now."""
        if self._founding is not None:
            return len(self._founding.here)
        return len(self._members & (self._connected | {self.me}))

    def missing(self) -> tuple[int, ...]:
        """Labels that have not come, before the first view."""
        return self._founding.missing() if self._founding is not None else ()

    @property
    def inside(self) -> bool:
        """Are we a member of the view?"""
        return self.me in self._members

    # Where we stand.

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

    # What the state wants.

    def _done(self) -> list[Effect]:
        self._act()
        out, self._out = self._out, []
        return out

    def _act(self) -> None:
        if self._founding is not None:
            self._found(self._founding)
            return
        head = self._head()
        if head == self.me:
            self._steer()
        elif self._leaving and self._following == 0:
            return
        elif head != 0:
            self._follow(head)
        elif not self._resting:
            self._rest(0)

    def _follow(self, head: int) -> None:
        self._proposal = None
        if head != self._following:
            if self._following != self.me:
                self._drop(self._following)
            self._following = head
            if self._knows_us(head):
                self._guests.pop(head, None)
                self._tell_head()
                self._send_guests_to_head()
            else:
                self._call(head)
        elif head in self._connected and not self._knows_us(head):
            self._call(head)
        for uid, hello in list(self._guests.items()):
            self._receive(uid, hello)

    def _knows_us(self, head: int) -> bool:
        """Has it our seat: by our Hello, or as a member's?"""
        return head in self._connected and (head in self._greeted or self.me in self._members)

    def _call(self, head: int) -> None:
        """Dial it, even where it has dialed us."""
        seat = self._seat(head)
        self._drop(head)
        if seat is not None:
            self._out.append(Dial(seat))
        else:
            self._hint = 0
            self._rest(0)

    def _receive(self, uid: int, hello: Hello) -> None:
        """Somebody takes us for the head, and we are not."""
        if hello.view != self.view.number and hello.view > 0:
            self._send(uid, Decide(self.view))
        if uid not in self._members and self._following in self._connected:
            self._see_off(uid)
        else:
            self._arm(f"guest {uid}", _GUEST)

    def _see_off(self, uid: int) -> None:
        seat = self._seat(self._following)
        if uid in self._connected and not self._at_helm and uid != self._following and seat is not None:
            self._send(uid, Elsewhere(seat))
            self._drop(uid)

    def _send_guests_to_head(self) -> None:
        for uid in sorted(self._connected - {self._following}):
            self._see_off(uid)

    def _rest(self, head: int) -> None:
        """Look for a head again in a while."""
        self._resting = True
        self._following = 0
        self._arm(f"again {head}", self._pause)
        if self._pause > 1:
            self._out.append(Knock())
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _wake(self, head: int) -> None:
        self._resting = False
        if not self._at_helm:
            self._suspected.clear()
            self._hint = head

    def _steer(self) -> None:
        self._following = self.me
        for uid, hello in list(self._guests.items()):
            self._welcome(uid, hello)
        if self._proposal is not None:
            self._advance(self._proposal)
        elif self._is_over():
            self._end()
        elif self._missing():
            self._arm(f"patience {self.view.number}", PATIENCE)
        elif self._wants_change() and not self._backing_off:
            self._propose()
        else:
            self._send_expect()

    def _wants_change(self) -> bool:
        """A change that has begun anywhere must end: some are frozen."""
        begun = self._highest > _NO_BALLOT or bool(self._asked)
        return begun or self.view.leader != self.me or not self._members.isdisjoint(self._suspected)

    # Before the first view.

    def _found(self, founding: Founding) -> None:
        for uid, hello in list(self._guests.items()):
            why = founding.objection(hello)
            if why:
                self._deny(uid, why)
                continue
            founding.here[uid] = hello.seat
            if len(founding.here) < founding.size:
                self._send(uid, Waiting(founding.missing()))
        self._guests.clear()
        everybody = founding.complete()
        if everybody is not None:
            self._founding = None
            self._decide(first(self.view, everybody))
            self._act()

    def _remind(self, founding: Founding) -> None:
        for uid in founding.here:
            self._send(uid, Waiting(founding.missing()))
        self._arm("remind", _REMIND)

    # At the helm: who comes and who goes.

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
            return _OVER
        for other in self._company():
            if other.uid != uid and other.label == label >= 0:
                if other.uid == self.me or (other.uid in self._connected and other.uid not in self._suspected):
                    return taken(other)
        return None

    def _number(self, uid: int, hello: Hello) -> None:
        """Its label, and what that says about who had it before."""
        label = hello.seat.label
        if label == UNNUMBERED:
            label = lowest_free({other.label for other in self._company() if other.uid != uid})
        self._known[uid] = replace(hello.seat, label=label)
        for other in self.view.seats:
            if other.label == label and other.uid != uid and other.uid not in self._suspected:
                self._suspect(other.uid, f"it came back as process {hello.seat.pid}")

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
            if self._ready[seat.uid] != brought:
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
        if self._newcomers():
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

    def _is_over(self) -> bool:
        here = self._members & (self._connected | {self.me}) - self._left
        return bool(self._left & self._members) and not here

    def _end(self) -> None:
        for uid in sorted(self._connected - self._members):
            if self._label(uid) != FOUNDER:
                self._deny(uid, _OVER)
        if not self._over:
            self._over = True
            self._out.append(Over())

    def _ask(self, why: str) -> None:
        self._asked = self._asked or why or "a fence"

    # At the helm: the next view.

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
        for uid in sorted(self._connected):
            self._ask_to_promise(proposal, uid)
        self._note_own_report(proposal)
        self._arm(f"stuck {self._proposal_name}", self._stuck)
        self._advance(proposal)

    def _votes(self) -> list[Vote]:
        """The votes that we cast: our own, and those of members that left."""
        own = self._own_vote()
        return ([own] if own is not None else []) + list(self._hands.values())

    def _own_vote(self) -> Vote | None:
        """Ours, or our predecessor's, in the decision on the next view."""
        vote, number = self._vote, self.view.number + 1
        if vote is None or vote.uid not in self.view.voters or vote.number > number:
            return None
        return replace(vote, base=None) if vote.number == number else blank(vote.uid, number)

    def _keep(self, vote: Vote) -> None:
        if vote.uid in self._hands:
            self._hands[vote.uid] = vote
            return
        self._vote = vote
        self._out.append(Save(replace(vote, base=self.view)))
        if self._proposal is not None and vote.promised is not None and vote.promised > self._proposal.ballot:
            self._back_off(vote.promised)

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
        asked = (self._members | set(self.view.voters)) & (self._connected | {self.me})
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
            for uid in sorted(self._connected):
                self._ask_to_accept(proposal, uid)
        if proposal.decided and proposal.view is not None:
            self._decide(proposal.view)
            self._act()

    def _compose(self, proposal: Proposal) -> View | None:
        reports = {uid: r for uid, r in proposal.reports.items() if uid not in self._suspected}
        if reports:
            self._turn_away(next(iter(reports.values())).brought)
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
                    Say(f"training goes on with {len(view.seats)} agents and without a majority, as asked")
                )
                self._decide(view)
                return
        self._out.append(Say(self._lament(proposal)))
        self._probe()
        self._stuck = min(2 * self._stuck, _LONGEST_PAUSE)
        self._arm(f"stuck {self._proposal_name}", self._stuck)

    def _may_go_on(self, proposal: Proposal) -> bool:
        well = [uid for uid in proposal.reports if uid not in self._suspected]
        return self._min_agents is not None and len(well) >= self._min_agents and not self._unanswered(proposal)

    def _lament(self, proposal: Proposal) -> str:
        slow = self._unanswered(proposal) if proposal.view is None else set()
        if slow:
            return f"training waits for {listed([self._label(uid) for uid in slow])} to say how far it came"
        here, need, voters = len(proposal.here), majority(self.view.voters), len(self.view.voters)
        if here >= need:
            absent = [seat.label for seat in self.view.seats if seat.uid not in proposal.reports and seat.healed]
            return f"training waits for one of {listed(absent)}: nobody that is here has the model; start them again"
        absent = [self._label(uid) for uid in self.view.voters if uid not in proposal.here]
        agents = max(1, len(proposal.reports))
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

    # As a voter and a member, whoever is at the helm.

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
            self._since = self._since if was_in else _since(view)
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
        self._hint, self._resting, self._hops, self._pause = 0, False, 0, _SHORTEST_PAUSE
        self._expecting = self._expect_sent = self._frozen = self._backing_off = False
        self._report, self._asked_by, self._held, self._proposal = None, None, None, None
        self._asked, self._highest, self._stuck = "", _NO_BALLOT, _STUCK

    # Towards the head.

    def _tell_head(self) -> None:
        """Say to the head what is still open."""
        head = self._following
        if self._brought is not None:
            self._send(head, Ready(self._brought))
        for uid, why in self._lost.items():
            self._send(head, Suspect(uid, why))
        if self._held is not None:
            self._send(head, Fence(self._held))
        if self._highest > _NO_BALLOT:
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

    def _on_elsewhere(self, leader: Seat) -> None:
        self._known.setdefault(leader.uid, leader)
        self._drop(self._following)
        self._following = 0
        self._hops += 1
        if leader.uid in self._suspected or leader.uid == self.me or self._hops > 2:
            self._rest(leader.uid)
        else:
            self._hint = leader.uid

    # Connections.

    def _arrived(self, uid: int) -> None:
        self._connected.add(uid)
        self._suspected.pop(uid, None)

    def _suspect(self, uid: int, why: str, what: str = "closed") -> None:
        if uid not in self._suspected and uid != self.me:
            self._suspected[uid] = why
            self._out.append(Suspected(uid, self._label(uid), what, why))

    def _deny(self, uid: int, why: str) -> None:
        self._send(uid, Denied(why))
        self._drop(uid)
        self._out.append(Say(f"denied {self._name(uid)}: {why}"))

    def _send(self, uid: int, message: Message) -> None:
        if uid in self._connected:
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


def _since(view: View) -> int:
    """The first round in which one that enters with ``view`` takes part."""
    return 0 if view.number <= 1 else view.entry


def _outweighs(view: View, other: View) -> bool:
    """Of two views of one number, which only ``min_agents`` can make, the larger one stays."""
    return view.number == other.number and (len(view.seats), -view.leader) > (len(other.seats), -other.leader)
