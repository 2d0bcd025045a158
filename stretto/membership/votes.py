"""One view number is decided once: single-decree Paxos, as pure functions of votes.

Theory of operation. View v names its voters; what view v + 1 is, they decide. A proposer's ballot is promised by a
majority of them, then the view that the highest accepted vote among the promises names (or, where there is none, a
view of the proposer's own) is accepted by a majority. Two majorities share a voter, so whatever was decided is what
every later ballot proposes. L. Lamport, "Paxos made simple" (2001), section 2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from stretto.membership.messages import Accepted, Ballot, Promise, Report, View, Vote


def blank(uid: int, number: int) -> Vote:
    """Of voter ``uid``, which has promised nothing yet about view ``number``."""
    return Vote(uid, number, None, None, None)


def promise(vote: Vote, ballot: Ballot) -> Vote | None:
    """The vote that has promised to accept nothing below ``ballot``; None where it promised another one more."""
    if vote.promised is not None and vote.promised > ballot:
        return None
    return replace(vote, promised=ballot)


def accept(vote: Vote, ballot: Ballot, view: View) -> Vote | None:
    """The vote for ``view``; None where it promised another proposer more."""
    if vote.promised is not None and vote.promised > ballot:
        return None
    return replace(vote, promised=ballot, accepted=ballot, view=view)


def bound(votes: Iterable[Vote]) -> View | None:
    """What a proposer with these promises must propose: it may have been decided. None: whatever it likes."""
    accepted = [(vote.accepted, vote.view) for vote in votes if vote.accepted is not None]
    return max(accepted, key=lambda pair: pair[0])[1] if accepted else None


def majority(voters: Collection[int]) -> int:
    return len(voters) // 2 + 1


@dataclass(slots=True)
class Proposal:
    """One ballot of one proposer: the votes and reports it has, then the view it proposes and who accepted it."""

    base: View
    ballot: Ballot
    votes: dict[int, Vote] = field(default_factory=dict)
    reports: dict[int, Report] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    view: View | None = None
    accepted: set[int] = field(default_factory=set)

    @property
    def promised(self) -> bool:
        return len(self.votes) >= majority(self.base.voters)

    @property
    def decided(self) -> bool:
        return len(self.accepted) >= majority(self.base.voters)

    @property
    def here(self) -> set[int]:
        """Voters that took part in what is under way."""
        return self.accepted if self.view is not None else set(self.votes)

    def is_answered_by(self, message: Promise | Accepted) -> bool:
        """Is it about our ballot? Every view number has ballots of its own."""
        return message.number == self.base.number + 1 and message.ballot == self.ballot

    def propose(self, view: View) -> None:
        self.view = view
        self.answered = set()
