"""Who trains what, by demand: leases of samples, kept beside the ledger that says which are trained.

*Theory of operation.* A lease is a step that is dealt and not committed (:class:`Held`): to one agent that asked, or,
where the deal is ``static``, to all of them, a part each, as without a server. What is free is what the ledger would
leave if all that is out were committed; so nothing is ever out twice, and a commit changes nothing of what is free. The
leases of who is gone are free again, and go to who asks next. A quick agent may be in the next epoch while a slow one
trains its last lease of this one (:attr:`Ledger.ahead`).

An agent for which nothing is free waits as long as something is out, for it may come back. Nothing is out for ever: a
lease is committed, given back, or free when its holder is gone.

A ``static`` step is dealt when the first asks for it, and is committed when all to whom it was dealt have committed it.
When members change it stays as it is, since they may be training it, less the parts of who is gone; who is new weighs
nothing in it. What was not dealt yet is dealt to the members there are then. So as long as nobody asks for a step ahead
of the one that is trained, steps are those of :func:`stretto.data.course.course`, also after a death.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from stretto.errors import DataError, Disagreement, UsageError
from stretto.ledger import Deal, Ledger, Ranges, count, deal

_GONE: Final = -1


class Lease(Struct, frozen=True, forbid_unknown_fields=True):
    """Positions of an epoch to train, and what their gradient weighs; is it the ``last``, as far as one knows?

    ``number`` tells it from all others that its holder has; 0: it weighs nothing, and there is nothing to commit.
    """

    number: int
    epoch: int
    ranges: Ranges
    share: float
    last: bool = False

    @property
    def read(self) -> Ranges:
        """The positions to hand out."""
        return self.ranges


class Held(Struct, frozen=True, forbid_unknown_fields=True):
    """The first step of ``deal`` is out, to ``members`` by rank; the ranks ``done`` have trained it.

    ``clock``: which of the static steps it is.
    """

    number: int
    deal: Deal
    members: tuple[int, ...]
    clock: int = 0
    done: tuple[int, ...] = ()

    @property
    def waiting(self) -> tuple[int, ...]:
        """Who is to commit it."""
        return tuple(uid for rank, uid in enumerate(self.members) if uid != _GONE and rank not in self.done)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Whose parts are trained, or will be."""
        return tuple(rank for rank, uid in enumerate(self.members) if uid != _GONE)

    def by(self, uid: int) -> Held:
        """Committed by this member."""
        return replace(self, done=(*self.done, self.members.index(uid)))

    def among(self, members: tuple[int, ...]) -> Held:
        """Who is not one of these is gone; what it had committed stays so."""
        left = [uid if uid in members or rank in self.done else _GONE for rank, uid in enumerate(self.members)]
        return replace(self, members=tuple(left))

    def passed(self, uid: int, clock: int) -> Held:
        """This member has trained the step of ``clock``: what it has of an earlier one it will not train any more."""
        if clock <= self.clock or uid not in self.waiting:
            return self
        return self.among(tuple(other for other in self.members if other != uid))


class Standing(Struct, frozen=True, forbid_unknown_fields=True):
    """What is committed, to whom leases are given, what is out; the static step committed last, and what was before."""

    ledger: Ledger
    batch_size: int
    epochs: int
    members: tuple[int, ...] = ()
    out: tuple[Held, ...] = ()
    issued: int = 0
    last: tuple[Ledger, Held] | None = None


class Leases:
    """The leases of one dataset's samples, from ``ledger`` on. Deterministic: the same calls lead to the same state.

    Args:
        batch_size: samples of a lease, unless who asks says otherwise.
        static: deal to all members alike, a step after the other.

    Raises:
        UsageError: a stream, or a size below 1.
    """

    def __init__(self, ledger: Ledger, batch_size: int, epochs: int, static: bool = False) -> None:
        if ledger.samples is None:
            raise UsageError(
                "a server leases samples by their numbers, and a stream has none: use a map-style dataset (with "
                "__getitem__ and __len__), or a strategy without a server, such as allreduce() or local_sgd()"
            )
        if epochs < 1 or batch_size < 1:
            raise UsageError(f"epochs and batch_size must be at least 1; got {epochs} and {batch_size}")
        self._samples, self._static = ledger.samples, static
        self._now = Standing(ledger, batch_size, epochs)
        self._ahead = ledger

    @classmethod
    def of(cls, state: Any, static: bool = False) -> Leases:
        """As those are whose :meth:`state` it is.

        Raises:
            DataError: it is damaged.
        """
        try:
            now = msgspec.convert(state, Standing)
        except msgspec.ValidationError as e:
            raise DataError(f"the state of leases is damaged: {e}; take it from another agent or checkpoint") from e
        leases = cls(now.ledger, now.batch_size, now.epochs, static)
        leases._stand(now)
        return leases

    def state(self) -> Any:
        """In plain values."""
        return msgspec.to_builtins(self._now)

    @property
    def ledger(self) -> Ledger:
        """What is committed."""
        return self._now.ledger

    @property
    def over(self) -> bool:
        """Are all epochs committed?"""
        return self._now.ledger.epoch >= self._now.epochs

    def enter(self, members: tuple[int, ...]) -> None:
        """These are here now (uids by rank). What was leased to others is free again."""
        out = tuple(held.among(members) for held in self._now.out)
        self._now = replace(self._now, members=members, out=out)
        self._close(out)
        self._stand(self._now)

    def lease(self, uid: int, clock: int = 0, batch_size: int = 0) -> Lease | None:
        """Samples for this agent; None: it is over, or wait, and ask again when something was committed or came back.

        Args:
            clock: static: of which step; who asks again is told the same. Steps need not follow each other.
            batch_size: how many; 0: as many as were said at the beginning. (Static: always.)

        Raises:
            Disagreement: it is no member, or the step is over.
        """
        if uid not in self._now.members:
            raise Disagreement(f"agent {uid} is not one of {list(self._now.members)}, who train: join anew")
        held = self._step(clock) if self._static else self._deal((uid,), batch_size or self._now.batch_size)
        return None if held is None else self._lease(held, uid)

    def held(self, uid: int, number: int) -> Lease | None:
        """What is out to this agent beyond that number, and it may not have heard of. (Static: ask again.)"""
        found = (held for held in self._now.out if held.number > number and uid in held.members)
        held = None if self._static else next(found, None)
        return None if held is None else self._lease(held, uid)

    def begun(self, clock: int) -> bool:
        """Is that static step dealt to some, who count on the others?"""
        return self._static and any(held.clock == clock for held in self._now.out)

    def out_to(self, uid: int) -> list[int]:
        """The numbers of what it has and has not committed, the first first."""
        return [held.number for held in self._now.out if uid in held.waiting]

    @property
    def holders(self) -> set[int]:
        """Who is to commit something."""
        return {uid for held in self._now.out for uid in held.waiting}

    def commit(self, uid: int, number: int) -> bool:
        """The agent has trained that lease; False: it is not out to it. It is committed, or went back."""
        held = next((held for held in self._now.out if held.number == number), None)
        if held is None or uid not in held.waiting:
            return False
        after = held.by(uid)
        out = tuple(after if other is held else other.passed(uid, held.clock) for other in self._now.out)
        self._now = replace(self._now, out=out)
        self._close(out if self._static else (after,))
        if self._static:
            self._stand(self._now)
        return True

    def give_back(self, uid: int, number: int) -> None:
        """The agent will not train that lease. (A part of a static step cannot be given back.)"""
        if not self._static:
            out = tuple(held for held in self._now.out if held.number != number or uid not in held.members)
            self._stand(replace(self._now, out=out))

    def settle(self, clock: int) -> None:
        """Static: be after step ``clock``, the last that is committed or the one before; of later ones nothing is."""
        now = self._now
        if now.last is not None and now.last[1].clock > clock:
            ledger, held = now.last
            now = replace(now, ledger=ledger, out=(held, *now.out), last=None)
        self._stand(replace(now, out=tuple(replace(held, done=()) for held in now.out)))

    def _step(self, clock: int) -> Held | None:
        held = next((held for held in self._now.out if held.clock == clock), None)
        if held is not None:
            return held
        if self._now.last is not None and clock <= self._now.last[1].clock:
            raise Disagreement(f"step {clock} is asked for, and is over: do all take the same steps?")
        return self._deal(self._now.members, self._now.batch_size, clock)

    def _deal(self, members: tuple[int, ...], batch_size: int, clock: int = 0) -> Held | None:
        """The next step, now out to these."""
        now = self._now
        if self._ahead.epoch >= now.epochs:
            return None
        dealt = deal(self._ahead, (1,) * len(members), batch_size)
        if not self._static:
            dealt = Deal(dealt.epoch, dealt.batch(0), (1,), batch_size)
        held = Held(now.issued + 1, dealt, members, clock)
        self._ahead = self._ahead.commit(dealt, 0)
        out = tuple(sorted((*now.out, held), key=lambda held: held.clock))  # all who had an earlier one may be gone
        self._now = replace(now, out=out, issued=held.number)
        return held

    def _lease(self, held: Held, uid: int) -> Lease:
        last = self._ahead.epoch >= self._now.epochs and held.number == self._now.issued
        dealt = held.deal
        if uid not in held.members:  # it came when this step was out
            return Lease(0, dealt.epoch, dealt.stand_in(0), 0.0, last)
        rank = held.members.index(uid)
        share = dealt.share(0, rank) if self._static else count(dealt.positions) / self._usual(dealt.batch_size)
        return Lease(held.number, dealt.epoch, dealt.read(0, rank), share, last)

    def _usual(self, batch_size: int) -> float:
        """Samples in a lease, in the mean of an epoch: so all samples weigh the same, and an epoch's leases 1 each."""
        return self._samples / Deal(0, ((0, self._samples),), (1,), batch_size).steps

    def _close(self, out: tuple[Held, ...]) -> None:
        """What of this nobody is to commit any more is committed, by those who have; static steps one by one."""
        for held in out:
            if held.waiting:
                if self._static:
                    return
                continue
            now = self._now
            self._now = now = replace(now, out=tuple(other for other in now.out if other is not held))
            if held.done:
                last = (now.ledger, replace(held, done=())) if self._static else None
                self._now = replace(now, ledger=now.ledger.commit(held.deal, 0, held.done), last=last)

    def _stand(self, now: Standing) -> None:
        """Stand so; what is free follows."""
        self._now, self._ahead = now, now.ledger
        for held in now.out:
            self._ahead = self._ahead.commit(held.deal, 0, held.ranks)
