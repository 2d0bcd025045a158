"""Who is in, who leads, what comes next: membership as a state machine without I/O or clock. Events in, effects out.

Theory of operation. Everybody keeps one control connection, to its *head*: the view's leader, or, where that is lost,
the first of the members in rank order that is not. Who finds itself to be the head is *at the helm*: the others dial
it, and after a little patience it freezes them, collects what they report, and has the voters of the view decide on the
next one (:mod:`~stretto.membership.votes`, :mod:`~stretto.membership.compose`). A death, a leaver and a newcomer are
the same transition. Suspicion is only ever a reason to propose: a wrong one costs a view, never agreement.

Every event changes the state and then asks one question again (``_act``): what does the state as it is now want? So an
event that comes twice, late or in another order needs no case of its own. Messages may be lost when a connection
breaks; whoever meets again says again what is still open (``_update``, ``_tell_head``).
"""

from __future__ import annotations

from typing import Final, Self, final

from msgspec.structs import replace

from stretto.core import Network
from stretto.membership.compose import first, nowhere
from stretto.membership.effects import (
    Deny,
    Dismiss,
    Effect,
    Save,
)
from stretto.membership.founding import Founding
from stretto.membership.helm import GRACE, Helm
from stretto.membership.messages import (
    Decide,
    Denied,
    Elsewhere,
    Expect,
    Finished,
    Hello,
    Message,
    Prepare,
    Propose,
    Ready,
    Report,
    Seat,
    Suspect,
    View,
    Vote,
    Waiting,
)

PATIENCE: Final = 1.5
"""Seconds in which members must have come to a new head before it goes on without them."""
_REMIND: Final = 5.0


@final
class Views(Helm):
    """One process's part in the chain of views; made by :meth:`founder` or :meth:`agent`.

    Every event method returns the effects it asks for, in order.
    """

    @classmethod
    def founder(
        cls,
        seat: Seat,
        size: int,
        network: Network,
        min_agents: int | None = None,
        *,
        servers: int = 0,
        store: bool = False,
    ) -> Self:
        """A coordinator that is a process apart: it calls the first view of ``size`` agents and ``servers`` together.

        ``store``: a store of views has the only vote; whoever drives us takes what is for :data:`STORE` there.
        """
        views = cls(seat, nowhere(seat, network, store=store), size, None, min_agents)
        views._founding = Founding(size, servers)
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
        views._hint = head if head != view.leader and not views.inside else 0
        return views

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

    def hello(self, hello: Hello) -> list[Effect]:
        """A process dialed us, proved the secret and ``hello.seat.uid``, and said this."""
        uid = hello.seat.uid
        if uid in self._members or uid not in self._known or self._known[uid].label < 0:
            self._known[uid] = hello.seat
        self._arrived(uid)
        self._greeted.discard(uid)
        if hello.vote is not None and hello.vote.base is not None and self._founding is None:
            self._on_decide(uid, hello.vote.base)
        if hello.view > self.view.number and self._founding is None:
            self._send(uid, Decide(self.view))  # answered with the newer one
        if hello.view == 0 and uid in self._members and not self._at_helm:
            self._send(uid, Decide(self.view))  # it has not heard that it is in
        if uid == self._following and self._following != self.me:
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
        elif self._resting or not self.inside:
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
            self._arm(f"left {self.view.number}", GRACE)
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
            case Propose():
                self._on_propose(uid, message)
            case Decide():
                self._on_decide(uid, message.view)
            case Expect():
                self._expect()
            case Elsewhere() if uid == self._following:
                self._on_elsewhere(message.leader)
            case Denied():
                self._out.append(Deny(message.why))
            case Finished():
                self._out.append(Dismiss())
            case _:
                self._heard_as_head(uid, message)
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
        """All exchanges of view ``number`` have ended; this is how far we came. Who is healed only then says it again:
        maybe all that had the state are gone.
        """
        if number == self.view.number and (self._report is None or (report.healed and not self._report.healed)):
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
            case "over" if self._at_helm and self._is_over():
                self._dismiss()
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

    def present(self) -> int:
        """Agents and servers that are here now."""
        if self._founding is not None:
            return len(self._founding.here)
        return len(self._members & (self._connected | {self.me}))

    def missing(self) -> tuple[int, ...]:
        """Labels that have not come, before the first view."""
        return self._founding.missing() if self._founding is not None else ()

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

    def _steer(self) -> None:
        self._following = self.me
        for uid, hello in list(self._guests.items()):
            self._welcome(uid, hello)
        if self._is_over():
            self._end()
        elif self._proposal is not None:
            self._advance(self._proposal)
        elif self._missing():
            self._arm(f"patience {self.view.number}", PATIENCE)
        elif self._wants_change() and not self._backing_off:
            self._propose()
        else:
            self._send_expect()

    def _found(self, founding: Founding) -> None:
        for uid, hello in list(self._guests.items()):
            why = founding.objection(hello)
            if why:
                self._deny(uid, why)
                continue
            founding.here[uid] = hello.seat
            if founding.missing():
                self._send(uid, Waiting(founding.missing()))
        self._guests.clear()
        everybody = founding.complete()
        if everybody is not None:
            self._founding = None
            self._open(first(self.view, everybody))
            self._act()

    def _remind(self, founding: Founding) -> None:
        for uid in founding.here:
            self._send(uid, Waiting(founding.missing()))
        self._arm("remind", _REMIND)
