"""On the way to the head: finding it, dialing it, and sending on to it those who take us for the head."""

from __future__ import annotations

from abc import ABC
from typing import Final

from stretto.membership.effects import (
    Deny,
    Dial,
    Knock,
)
from stretto.membership.messages import (
    Decide,
    Elsewhere,
    Hello,
    Seat,
)
from stretto.membership.voter import Voter

_GUEST: Final = 2.0
LONGEST_PAUSE: Final = 10.0
PATIENCE: Final = 300.0
"""Seconds of rest after which one that is out of the view takes it that nobody will answer any more."""
NOBODY: Final = (
    f"nobody has answered for {PATIENCE / 60:g} minutes: the run is over, or all its agents are lost; start it again"
)


class Follower(Voter, ABC):
    """The part of a :class:`~stretto.membership.views.Views` that follows."""

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
        """Look for a head again in a while; who has no vote, which the others may need, gives up in the end."""
        self._resting = True
        self._following = 0
        self._alone += self._pause
        if self._alone > PATIENCE and not self.inside and not self._stands_in:
            self._alone = 0.0
            self._out.append(Deny(NOBODY))
        self._arm(f"again {head}", self._pause)
        if self._pause > 1:
            self._out.append(Knock())
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _wake(self, head: int) -> None:
        self._resting = False
        if not self._at_helm:
            self._suspected.clear()
            self._hint = head

    def _on_elsewhere(self, leader: Seat) -> None:
        self._known.setdefault(leader.uid, leader)
        self._drop(self._following)
        self._following = 0
        self._hops += 1
        if leader.uid in self._suspected or leader.uid == self.me or self._hops > 2:
            self._rest(leader.uid)
        else:
            self._hint = leader.uid
