"""Who trains what, by demand: leases of samples, kept beside the ledger that says which are trained.

*Theory of operation.* A lease is a step that is dealt and not committed (:class:`Held`): to one agent that asked, or,
where the deal is ``static``, to all of them, a part each, as without a server. What is free is what the ledger would
leave if all that is out were committed; so nothing is ever out twice, and a commit changes nothing of what is free. The
leases of who is gone are free again, and go to who asks next. A quick agent may be in the next epoch while a slow one
trains its last lease of this one (:attr:`Ledger.ahead`).

An agent for which nothing is free waits as long as something is out, for it may come back. Nothing is out for ever: a
lease is committed by its holder, or is free when that is gone. The exception are agents that accumulate gradients, and
cannot commit what they have before they get more (``idle``): where all that is out is theirs, it is the end.

A ``static`` step is committed by all of its members at once. When members change, those in the first step that is out
may be training it: it stays as it is, less the parts of who is gone. What was dealt beyond it is void: it is dealt anew
to the members there are now, and who had asked for it asks again.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from stretto.errors import DataError, Disagreement, UsageError
from stretto.ledger import Deal, Ledger, Ranges, count, deal


class End(Enum):
    END = "nothing is left to train"


END: Final = End.END

_GONE: Final = -1


class Lease(Struct, frozen=True, forbid_unknown_fields=True):
    """Positions of an epoch to train, and what their gradient weighs; is it the ``last``, as far as one knows?

    ``number``: with its holder it tells the lease from all others; 0: it weighs nothing, and need not be committed.
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
    """The first step of ``deal`` is out, to ``members`` by rank; the ranks ``done`` have trained it."""

    number: int
    deal: Deal
    members: tuple[int, ...]
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
        rank = self.members.index(uid)
        return self if rank in self.done else replace(self, done=(*self.done, rank))

    def among(self, members: tuple[int, ...]) -> Held:
        """Who is not one of these is gone; what it had committed stays so."""
        left = [uid if uid in members or rank in self.done else _GONE for rank, uid in enumerate(self.members)]
        return replace(self, members=tuple(left))


class Standing(Struct, frozen=True, forbid_unknown_fields=True):
    """What is committed and what is out; ``clock``: static steps committed, ``committed``: (uid, number) of late."""

    ledger: Ledger
    members: tuple[int, ...] = ()
    out: tuple[Held, ...] = ()
    issued: int = 0
    clock: int = 0
    idle: tuple[int, ...] = ()
    committed: tuple[tuple[int, int], ...] = ()


class Leases:
    """The leases of one dataset's samples, over all epochs. Deterministic: the same calls lead to the same state.

    Args:
        samples: how many there are in an epoch.
        batch_size: samples of a lease, unless who asks says otherwise.
        static: deal to all members alike, a step after the other.
        ledger: what was trained before.

    Raises:
        UsageError: a stream, no samples, or a size below 1.
        Disagreement: the ledger is of other data.
    """

    def __init__(
        self,
        samples: int | None,
        seed: int = 0,
        shuffle: bool = True,
        batch_size: int = 1,
        epochs: int = 1,
        static: bool = False,
        ledger: Ledger | None = None,
    ) -> None:
        if samples is None:
            raise UsageError(
                "a server leases samples by their numbers, and a stream has none: use a map-style dataset (with "
                "__getitem__ and __len__), or a strategy without a server, such as allreduce() or local_sgd()"
            )
        if epochs < 1 or batch_size < 1:
            raise UsageError(f"epochs and batch_size must be at least 1; got {epochs} and {batch_size}")
        fresh = Ledger.begin(samples, seed, shuffle)
        self.epochs, self.batch_size = epochs, batch_size
        self._samples, self._static = samples, static
        self._now = Standing(fresh if ledger is None else fresh.same_data(ledger))
        self._before: Standing | None = None
        self._ahead = self._now.ledger

    @property
    def ledger(self) -> Ledger:
        """What is committed."""
        return self._now.ledger

    @property
    def over(self) -> bool:
        """Are all epochs committed?"""
        return self._now.ledger.epoch >= self.epochs

    def enter(self, members: tuple[int, ...]) -> None:
        """These are here now, by rank. What was leased to others is free again, unless they had committed it."""
        now = self._now
        out = tuple(held.among(members) for held in now.out)
        self._now = replace(
            now,
            members=members,
            out=out[:1] if self._static and members != now.members else out,
            idle=tuple(uid for uid in now.idle if uid in members),
            committed=tuple((uid, number) for uid, number in now.committed if uid in members),
        )
        self._close()
        self._look_ahead()

    def lease(self, uid: int, clock: int = 0, batch_size: int = 0, *, idle: bool = False) -> Lease | End | None:
        """Samples for this agent; None: wait, and ask again after the next commit or change of members.

        Args:
            clock: static: of which step (the first is 1). Who asks again is told the same.
            batch_size: how many; 0: as many as were said at the beginning.
            idle: what it has it cannot commit before it has this.

        Raises:
            Disagreement: it is no member, or the step is over.
        """
        self._check(uid)
        held = self._step(clock) if self._static else self._deal((uid,), batch_size or self.batch_size)
        self._now = replace(self._now, idle=tuple(other for other in self._now.idle if other != uid))
        if held is not None:
            return self._lease(held, uid)
        if idle:
            self._now = replace(self._now, idle=(*self._now.idle, uid))
        waiting = {other for held in self._now.out for other in held.waiting}
        return END if waiting <= set(self._now.idle) else None

    def out_to(self, uid: int) -> list[int]:
        """The numbers of what it has and has not committed, the first first."""
        return [held.number for held in self._now.out if uid in held.waiting]

    def again(self, uid: int, known: int) -> Lease | None:
        """What was leased to it by demand and has a number above ``known``, the last that it heard of."""
        found = (held for held in self._now.out if uid in held.waiting and held.number > known)
        first = None if self._static else next(found, None)
        return None if first is None else self._lease(first, uid)

    def begun(self, clock: int) -> bool:
        """Static: is that step out to somebody?"""
        return self._static and clock - self._now.clock <= len(self._now.out)

    def commit(self, uid: int, number: int) -> bool:
        """The agent has trained that lease; False: it had said so before.

        Raises:
            Disagreement: the lease is not out to it: it was, before it was thought to be gone, or never.
        """
        self._check(uid)
        now = self._now
        before = dict(now.committed).get(uid, 0)
        held = next((held for held in now.out if held.number == number and uid in held.waiting), None)
        if held is None and number > before:
            raise Disagreement(
                f"agent {uid} commits lease {number}, which is not out to it (its last was {before}): what it trained "
                "is dealt to others; join anew"
            )
        if held is None:
            return False
        out = tuple(h.by(uid) if h is held else h for h in now.out)
        latest = {**dict(now.committed), uid: max(before, number)}
        self._now = replace(now, out=out, committed=tuple(sorted(latest.items())))
        self._close()
        return True

    def give_back(self, uid: int, number: int) -> None:
        """The agent will not train that lease. (A part of a static step cannot be given back.)"""
        self._check(uid)
        if not self._static:
            out = tuple(held for held in self._now.out if held.number != number or uid not in held.waiting)
            self._now = replace(self._now, out=out)
            self._look_ahead()

    def settle(self, clock: int) -> None:
        """Static: be after the commit of step ``clock``, the last one or the one before; later ones are not trained.

        Raises:
            Disagreement: it was too long ago.
        """
        now, before = self._now, self._before
        if clock < now.clock and before is not None:
            now = replace(before, members=now.members, issued=now.issued)
        if clock != now.clock:
            raise Disagreement(f"the ledger is after step {self._now.clock}, and cannot go to step {clock}")
        self._now = replace(now, out=tuple(replace(held, done=()) for held in now.out))
        self.enter(now.members)

    def state(self) -> Any:
        """In plain values: all that :meth:`load` needs to go on alike."""
        return msgspec.to_builtins([self._now, self._before])

    def load(self, state: Any) -> None:
        """Go on as those did whose ``state()`` it is.

        Raises:
            Disagreement: it is of other data.
            DataError: it is damaged.
        """
        try:
            now, before = msgspec.convert(state, tuple[Standing, Standing | None])
        except msgspec.ValidationError as e:
            raise DataError(f"the state of leases is damaged: {e}; take it from another agent or checkpoint") from e
        self._now.ledger.same_data(now.ledger)
        self._now, self._before = now, before
        self._look_ahead()

    def _check(self, uid: int) -> None:
        if uid not in self._now.members:
            raise Disagreement(f"agent {uid} is not one of {list(self._now.members)}, who train: join anew")

    def _step(self, clock: int) -> Held | None:
        """The static step of that clock."""
        place = clock - self._now.clock - 1
        if place < 0:
            raise Disagreement(f"step {clock} is over: {self._now.clock} steps are committed")
        while len(self._now.out) <= place:
            if self._deal(self._now.members, self.batch_size) is None:
                return None
        return self._now.out[place]

    def _deal(self, members: tuple[int, ...], batch_size: int) -> Held | None:
        """The next step, now out to these."""
        if self._ahead.epoch >= self.epochs:
            return None
        dealt = deal(self._ahead, (1,) * len(members), batch_size)
        if not self._static:
            dealt = Deal(dealt.epoch, dealt.batch(0), (1,), batch_size)
        held = Held(self._now.issued + 1, dealt, members)
        self._ahead = self._ahead.commit(dealt, 0)
        self._now = replace(self._now, out=(*self._now.out, held), issued=held.number)
        return held

    def _lease(self, held: Held, uid: int) -> Lease:
        last = self._ahead.epoch >= self.epochs and held is self._now.out[-1]
        dealt = held.deal
        if uid not in held.members:  # it came when this step was out
            return Lease(0, dealt.epoch, dealt.stand_in(0), 0.0, last)
        rank = held.members.index(uid)
        share = dealt.share(0, rank) if self._static else count(dealt.positions) / self._usual(dealt.batch_size)
        return Lease(held.number, dealt.epoch, dealt.read(0, rank), share, last)

    def _usual(self, batch_size: int) -> float:
        """Samples in a lease, in the mean of an epoch: all samples weigh the same, and leases of an epoch 1."""
        return self._samples / Deal(0, ((0, self._samples),), (1,), batch_size).steps

    def _close(self) -> None:
        """What nobody is to commit any more is committed, by those who have; static steps one after the other."""
        for held in self._now.out:
            if held.waiting:
                if self._static:
                    return
                continue
            now = self._now
            out = tuple(other for other in now.out if other is not held)
            if not held.done:
                self._now = replace(now, out=out)
                continue
            if self._static:
                self._before = replace(now, out=tuple(replace(other, done=()) for other in now.out))
            ledger = now.ledger.commit(held.deal, 0, held.done)
            self._now = replace(now, ledger=ledger, out=out, clock=now.clock + self._static)

    def _look_ahead(self) -> None:
        """What is free, anew."""
        self._ahead = self._now.ledger
        for held in self._now.out:
            self._ahead = self._ahead.commit(held.deal, 0, held.ranks)
