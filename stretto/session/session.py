"""The session: one agent's side of the run, and the only object that remembers from step to step.

Theory of operation. A round of the trainers is carried out bucket by bucket, each an exchange of the epoch we are in,
on a copy of what the trainer gave. No message commits a round: an exchange that finishes anywhere had everybody's
part, so whoever finishes something of round k + 1 knows that all have finished round k. Until then the results of
round k are kept, and the trainer's own memory holds the inputs of the round under way until all of it is finished.

When the members change, :meth:`freeze` ends every exchange of the epoch for good and reports what is finished, and
:meth:`install` goes on from everybody's reports: if the survivors together have all of the oldest unfinished round,
who lacks a bucket is given it; else that round is redone by those who are left. Either all apply it or none does.

A newcomer takes part in one round with nothing of its own while it is given the state (see
:mod:`stretto.exchanges.heal`), then goes on as everybody. The session lives in the courier beside a real trainer and
in the loop of a simulated agent; it does no I/O and knows no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from stretto.core import Epoch, Link, Member, Network, State, Strategy
from stretto.errors import Disagreement, NetworkError, PeerLost, StrettoError, UsageError
from stretto.exchanges import Arriving, Offer, agree, broadcast, donate, fetch, measure, offered
from stretto.membership.messages import Report, View
from stretto.membership.settle import Settlement, settle
from stretto.session.rounds import (
    Cancel,
    Closing,
    Direct,
    Order,
    Parts,
    Round,
    exchange_number,
    heal_number,
    share_number,
)

Ended = Callable[[Any, BaseException | None], None]


class Surroundings(Protocol):
    """What a session is given: links of the epoch it is in, somebody who runs coroutines, and the membership's ear."""

    def link(self, exchange: int) -> Link: ...
    def forget(self, exchange: int) -> None: ...
    def spawn(self, coroutine: Coroutine[Any, Any, Any], ended: Ended) -> Cancel: ...
    def enter(self, epoch: Epoch, rank: int) -> None: ...
    def abandon(self) -> None: ...
    def measured(self, network: Network) -> None: ...
    def ready(self, brought: str) -> None: ...
    def at_fence(self, round: int) -> None: ...
    def missed(self, peer: int) -> None:
        """An exchange cannot end without that rank."""
        ...

    def event(self, name: str, **fields: Any) -> None: ...
    def hold(self) -> None:
        """Let the trainer do no fence by itself."""
        ...

    def direct(self) -> Direct | None:
        """Let the trainer do no more by itself, and say where it is; None where it orders everything from us."""
        ...

    def direct_results(self, round: int) -> dict[int, Tensor]:
        """Of the round that it is in, or passed last, by bucket, when all have done their part."""
        ...


class Trainer(Protocol):
    """The other side of the orders."""

    def done(self, number: int, closing: Closing | None) -> None:
        """Order ``number`` is carried out; with the last one of a round comes its closing."""
        ...

    def failed(self, number: int, error: StrettoError) -> None: ...
    def donate(self) -> None:
        """Take a snapshot of your state, now that you wait; then call :meth:`Session.donated`."""
        ...

    def make_room(self, nbytes: int) -> None:
        """Call :meth:`Session.room` with so much memory for a state."""
        ...

    def heal(self) -> None:
        """That memory holds the state: take it over, then call :meth:`Session.healed`."""
        ...


class Session:
    """One agent in a run. ``me`` is its uid."""

    def __init__(self, me: int, surroundings: Surroundings, trainer: Trainer) -> None:
        self._me, self._around, self._trainer = me, surroundings, trainer
        self._strategies: dict[int, Strategy] = {}
        self._codec: dict[tuple[int, int], State] = {}
        self._view: View | None = None
        self._rank = 0
        self._frozen = False
        self._number = 1
        self._round: Round | None = None
        self._last: dict[int, Tensor] = {}
        self._healed = True
        self._brought = hashlib.blake2s(digest_size=8)
        self._expected = self._held = False
        self._moves: list[tuple[int, View]] = []
        self._labels: dict[int, int] = {}
        self._dealt: tuple[tuple[int, ...], ...] = ()
        self._to_deal: tuple[tuple[int, ...], ...] = ()
        self._network = Network()
        self._refused: StrettoError | None = None
        self._direct_until = 0
        self._direct_view: View | None = None
        self._doubted: Round | None = None
        self._snapshot: Tensor | None = None
        self._snapshot_of = 0
        self._offer: Offer | None = None
        self._arriving: Arriving | None = None
        self._side: list[Cancel] = []

    # What the trainer asks

    def use(self, group: int, strategy: Strategy) -> None:
        """Group ``group`` of buckets is averaged by ``strategy``."""
        if strategy.signal != "gradient":
            raise UsageError(
                f"{strategy} exchanges the {strategy.signal}; this version exchanges gradients: use allreduce"
            )
        self._strategies[group] = strategy

    def order(self, order: Order) -> None:
        if self._refused is not None:
            self._trainer.failed(order.number, self._refused)
            return
        if order.brings:
            self._brought.update(_text(order.x).encode())
        if order.round and order.round == self._direct_until and order.round < self._number:
            self._deliver_again(order)
            return
        if self._view is None and not order.fence:
            self._trainer.done(order.number, Closing(0, alone=True))
            return
        if self._round is None:
            if self._view is not None and not self._frozen:
                self._number = max(self._number, order.round)
            self._round = Round(self._number, order.of, order.fence)
            if self._expected and order.fence and self._view is not None and not self._frozen:
                self._held = True
                self._around.at_fence(self._number)
        self._round.orders[order.bucket] = order
        if self._view is None:
            if self._round.begun:
                self._around.ready(self.brought)
        elif not (self._frozen or self._held):
            self._run(self._round, order)
            self._advance()

    def donated(self, snapshot: Tensor) -> None:
        """The trainer's state (uint8), as it was before the round under way."""
        if self._round is None or not self._round.donated:
            return  # we were out meanwhile
        self._snapshot, self._snapshot_of = snapshot, self._round.number
        if not self._frozen:
            self._serve()
            self._advance()

    def room(self, memory: Tensor) -> None:
        offer = self._offer
        if offer is None:
            return  # we were out meanwhile
        self._arriving = Arriving(offer.digest, memory[: offer.nbytes])
        if not self._frozen and self._view is not None:
            self._fetch(offer)

    def healed(self) -> None:
        """The trainer has taken the state over."""
        self._healed = True
        self._around.event("healed", round=self._number, nbytes=len(self._arriving.memory) if self._arriving else 0)
        self._offer = self._arriving = None
        if not self._frozen:
            self._advance()

    # What the membership asks

    @property
    def brought(self) -> str:
        """Digests what was given to ``prepare()`` so far."""
        return self._brought.hexdigest()

    @property
    def number(self) -> int:
        """The lowest round that is not finished here."""
        return self._number

    @property
    def begun(self) -> int:
        """The latest round that the trainer has begun."""
        return self._number if self._round is not None and self._view is not None else self._number - 1

    def hold(self) -> None:
        """Somebody wants in: stop before the next fence, say so, and wait there for the next view."""
        self._expected = True
        self._around.hold()

    def freeze(self) -> Report:
        """End every exchange of this epoch, for good, and say what is finished. Orders that come now wait."""
        if not self._frozen:
            self._frozen = True
            self._stop()
            self._pronounce()
            self._take_back()
            self._around.event("frozen", view=self._view.number if self._view else 0)
        r = self._round
        return Report(
            uid=self._me,
            round=self._number,
            begun=r is not None,
            done=r.done if r is not None and self._view is not None else b"",
            fence=r is not None and r.fence,
            healed=self._healed and self._view is not None,
            brought=self.brought,
            delay=self._network.delay,
            rate=self._network.rate,
        )

    def _pronounce(self) -> None:
        """Some have gone, having heard how we differ; so have we."""
        r = self._round
        if r is not None and r.verdict is not None:
            for order in r.orders.values():
                self._trainer.failed(order.number, r.verdict)

    def _take_back(self) -> None:
        """From now on the trainer does nothing by itself: what it is in the middle of is a round like any other."""
        direct = self._around.direct()
        if direct is None or self._view is None:
            return
        self._direct_until = direct.round if direct.begun else direct.round - 1
        self._direct_view = self._view
        if direct.round < self._number or self._round is not None:
            return
        self._number, self._last = direct.round, {}
        if direct.begun:
            self._round = Round(direct.round, direct.of, direct.fence, direct=True)
            if direct.finished:
                self._round.results = self._around.direct_results(direct.round)

    def _deliver_again(self, order: Order) -> None:
        """The trainer has passed this round by itself in the moment in which we froze, and does not believe it."""
        assert self._direct_view is not None
        if self._doubted is None:
            self._doubted = Round(order.round, order.of, order.fence)
        r = self._doubted
        r.orders[order.bucket] = order
        if r.begun:
            self._doubted, r.results = None, self._around.direct_results(r.number)
            self._hand_over(r, self._closing(r, _parts(self._direct_view, r.number)))

    def install(self, view: View) -> None:
        """A view is decided. If we are in it, go on in its epoch; else be a candidate."""
        rank = next((r for r, seat in enumerate(view.seats) if seat.uid == self._me), None)
        if rank is None:
            self.out()
            return
        self._stop()
        before, self._view = self._view, view
        self._frozen = self._held = self._expected = False
        self._rank = rank
        self._network = Network(view.delay, view.rate)
        self._labels |= {seat.uid: seat.label for seat in view.seats}
        self._around.enter(epoch_of(view), rank)
        self._around.measured(self._network)
        if before is not None and any(report.uid == self._me for report in view.reports):
            self._moves = [(last, old) for last, old in self._moves if last < view.entry] + [(view.entry, view)]
            settlement = settle(view)
            if settlement is not None:
                self._settle(settlement, before)
        elif view.number == FIRST:
            self._dealt = self._to_deal = (epoch_of(view).uids,)
        else:
            self._enter_late(view)
        labels = epoch_of(view).labels
        self._around.event("view", number=view.number, labels=labels, rank=rank, entry=view.entry, why=view.why)
        self._go_on()

    def out(self) -> None:
        """We are in no view any more: the trainer goes on by itself until its next fence, where it can be healed."""
        self._stop()
        self._around.abandon()
        self._view, self._healed = None, False
        self._frozen = self._held = self._expected = False
        self._last.clear()
        self._moves.clear()
        self._snapshot = self._offer = self._arriving = None
        waiting = self._round
        if waiting is None:
            return
        waiting.results.clear()
        waiting.shared, waiting.donated = None, False
        if waiting.fence:
            if waiting.begun:
                self._around.ready(self.brought)
            return
        self._round = None
        for order in waiting.orders.values():
            self._trainer.done(order.number, Closing(0, alone=True))

    def refuse(self, error: StrettoError) -> None:
        """Nothing that is or will be ordered can be carried out any more."""
        self._stop()
        self._refused, waiting, self._round = error, self._round, None
        for order in waiting.orders.values() if waiting is not None else ():
            self._trainer.failed(order.number, error)

    # How a round goes

    def _run(self, r: Round, order: Order) -> None:
        if order.bucket in r.results or order.bucket in r.running:
            return
        exchange = exchange_number(r.number, order.bucket)
        link = self._around.link(exchange)

        def ended(value: Any, error: BaseException | None) -> None:
            r.running.pop(order.bucket, None)
            self._around.forget(exchange)
            if isinstance(error, PeerLost):
                self._around.missed(error.peer)
                return
            if error is not None:
                self._trainer.failed(order.number, _as_ours(error))
                return
            if order.what == "mean":
                value, self._codec[order.group, order.bucket] = value
            self._finished(r, order.bucket, value)

        r.running[order.bucket] = _nothing
        cancel = self._around.spawn(self._carry_out(r, order, link), ended)
        if order.bucket in r.running:
            r.running[order.bucket] = cancel

    async def _carry_out(self, r: Round, order: Order, link: Link) -> Any:
        match order.what:
            case "mean":
                assert self._view is not None
                counts = self._me in _participants(self._view, r.number)
                x = order.x.clone() if counts else torch.zeros_like(order.x)
                strategy, state = self._strategies[order.group], self._codec.get((order.group, order.bucket))
                (y,), state = await strategy.exchange.mean(link, [x], strategy.codec, state, r.number)
                return y, state
            case "broadcast":
                x = order.x.clone()
                await broadcast(link, x)
                return x
            case "agree":
                await self._compare(r, link, order)
            case "measure":
                self._network = await measure(link)
                self._around.measured(self._network)
                return torch.tensor([self._network.delay, self._network.rate], dtype=torch.float64)
            case "assume":
                self._network = Network(*order.x.tolist())
                self._around.measured(self._network)
        return order.x

    @staticmethod
    async def _compare(r: Round, link: Link, order: Order) -> None:
        """Who learns of a difference may end at once: so nobody does before all have heard."""
        try:
            await agree(link, order.about, _text(order.x))
        except Disagreement as e:
            r.verdict = e
            with suppress(PeerLost):
                await agree(link, "who has heard", "")
            raise

    def _finished(self, r: Round, bucket: int, result: Tensor) -> None:
        if not r.results:
            self._last.clear()
            if r.number > self._snapshot_of:
                self._snapshot = None  # all have finished the round before, newcomers too
        r.results[bucket] = result
        self._advance()

    def _advance(self) -> None:
        """Close the round when all is there: its results, the snapshot for newcomers, our own healing."""
        r = self._round
        if r is None or self._view is None:
            return
        if r.begun and not r.donated and self._healed and self._snapshot is None and self._newcomers(r.number):
            r.donated = True
            self._trainer.donate()
            return
        if not (r.begun and r.finished) or not self._healed or (r.donated and self._snapshot is None):
            return
        self._hand_over(r, self._close(r))

    def _hand_over(self, r: Round, closing: Closing) -> None:
        for bucket, order in r.orders.items():
            if r.results[bucket].data_ptr() != order.x.data_ptr():
                order.x.copy_(r.results[bucket])
            self._trainer.done(order.number, closing if bucket == r.of - 1 else None)

    def _close(self, r: Round) -> Closing:
        assert self._view is not None
        parts = r.shared or _parts(self._view, r.number)
        self._last, self._round, self._number = r.results, None, r.number + 1
        self._around.event(
            "commit",
            round=r.number,
            fence=r.fence,
            view=self._view.number,
            contributors=[self._labels[uid] for uid in parts.contributors],
        )
        return self._closing(r, parts)

    def _closing(self, r: Round, parts: Parts) -> Closing:
        """Where members changed between the draw of a batch and its fence, it was dealt to these or to those."""
        if r.fence:
            self._dealt, self._to_deal = self._to_deal, self._to_deal[-1:]
        counted = {frozenset(uids) for uids in self._dealt}
        whole = parts.size == len(parts.contributors) and counted == {frozenset(parts.contributors)}
        moved = [view for last, view in self._moves if last <= r.number]
        self._moves = [(last, view) for last, view in self._moves if last > r.number]
        if not moved:
            return Closing(r.number, parts.contributors, whole)
        epoch = epoch_of(moved[-1])
        self._to_deal = (epoch.uids,) if r.fence else (*self._to_deal, epoch.uids)
        return Closing(r.number, parts.contributors, whole, epoch, epoch.uids.index(self._me))

    # How an epoch begins

    def _settle(self, settlement: Settlement, before: View) -> None:
        r = self._round
        ours = r if r is not None and r.number == settlement.round else None
        if settlement.share:
            if ours is not None and ours.shared is None:
                ours.shared = _parts(before, ours.number)
            if settlement.round > self._direct_until:
                self._share(settlement)
            elif ours is not None:
                ours.results = self._around.direct_results(ours.number)
        elif ours is not None:
            ours.results.clear()
            ours.shared, ours.direct = None, False
            self._around.event("redo", round=ours.number)

    def _share(self, settlement: Settlement) -> None:
        """Give what others lack of the oldest unfinished round, and get what we lack."""
        link = self._around.link(share_number(settlement.round))
        for bucket, (holder, lacking) in enumerate(zip(settlement.holders, settlement.lacking, strict=True)):
            if holder == self._rank:
                for rank in lacking:
                    link.post(rank, (self._kept(settlement.round, bucket),), bucket)
            elif self._rank in lacking:
                self._side.append(self._around.spawn(self._get(link, holder, bucket), self._got(bucket)))
        self._around.event("share", round=settlement.round)

    def _kept(self, number: int, bucket: int) -> Tensor:
        if number == self._number and self._round is not None:
            return self._round.results[bucket]
        return self._last[bucket]

    @staticmethod
    async def _get(link: Link, holder: int, bucket: int) -> Tensor:
        return (await link.recv(holder, bucket)).payload[0]

    def _got(self, bucket: int) -> Ended:
        def ended(value: Any, error: BaseException | None) -> None:
            if error is None and self._round is not None:
                self._finished(self._round, bucket, value)

        return ended

    def _enter_late(self, view: View) -> None:
        """A newcomer: its first fence becomes round ``entry`` of the others, without any weight."""
        self._healed, self._number = False, view.entry
        self._dealt = self._to_deal = ()
        self._moves = [(view.entry, view)]
        if self._round is not None:
            self._round.number = view.entry
            self._round.results.clear()

    def _go_on(self) -> None:
        """Everything that the end of the last epoch interrupted."""
        r = self._round
        if r is not None and r.shared is None:
            for order in list(r.orders.values()):
                self._run(r, order)
        if not self._healed:
            self._seek()
        self._serve()
        self._advance()

    def _stop(self) -> None:
        if self._round is not None:
            self._round.cancel()
        for cancel in self._side:
            cancel()
        self._side.clear()
        if self._view is not None:
            self._around.abandon()

    # How a newcomer is healed

    def _newcomers(self, number: int) -> list[int]:
        """Ranks that get the state as it was before round ``number``."""
        assert self._view is not None
        view = self._view
        return [r for r, seat in enumerate(view.seats) if not seat.healed and entry_of(view, seat.uid) == number]

    def _serve(self) -> None:
        """Let the newcomers have our snapshot."""
        if self._snapshot is None or self._view is None:
            return
        for rank in self._newcomers(self._snapshot_of):
            if rank != self._rank:
                link = self._around.link(heal_number(self._snapshot_of, rank))
                self._side.append(self._around.spawn(donate(link, rank, self._snapshot), _ignore))

    def _seek(self) -> None:
        """Ask who can give us the state; go on with what we have of it from before."""

        def ended(offer: Any, error: BaseException | None) -> None:
            if error is not None:
                return  # nobody who has it is left in this epoch
            self._offer = offer
            if self._arriving is not None and self._arriving.digest == offer.digest:
                self._fetch(offer)
            else:
                self._trainer.make_room(offer.nbytes)

        self._side.append(self._around.spawn(offered(self._heal_link(), self._donors()), ended))

    def _fetch(self, offer: Offer) -> None:
        assert self._arriving is not None

        def ended(_: Any, error: BaseException | None) -> None:
            if error is None:
                self._trainer.heal()
            elif isinstance(error, Disagreement):
                self.refuse(error)

        self._side.append(self._around.spawn(fetch(self._heal_link(), offer.donors, self._arriving), ended))

    def _heal_link(self) -> Link:
        return self._around.link(heal_number(self._number, self._rank))

    def _donors(self) -> list[int]:
        assert self._view is not None
        return [rank for rank, seat in enumerate(self._view.seats) if seat.healed and rank != self._rank]


FIRST = 1
"""The view with which a run begins: all its members are healed, their weights are the first one's."""


def epoch_of(view: View) -> Epoch:
    """The epoch that a view begins."""
    return Epoch(
        view.number,
        tuple(Member(rank, s.host, s.pid, s.addresses, s.uid, s.label, s.healed) for rank, s in enumerate(view.seats)),
    )


def entry_of(view: View, uid: int) -> int:
    """The first round in which a member takes part, with nothing of its own; 0 for those of the first view."""
    since = next((report.since for report in view.reports if report.uid == uid), None)
    if since is not None:
        return since
    return 0 if view.number == FIRST else view.entry


def _participants(view: View, number: int) -> tuple[int, ...]:
    """Uids of those with a part of their own in round ``number``."""
    return tuple(s.uid for s in view.seats if entry_of(view, s.uid) < number)


def _parts(view: View, number: int) -> Parts:
    return Parts(_participants(view, number), len(view.seats))


def _text(x: Tensor) -> str:
    return bytes(x.numpy()).decode()


def _as_ours(error: BaseException) -> StrettoError:
    if isinstance(error, StrettoError):
        return error
    return NetworkError(f"an exchange failed: {type(error).__name__}: {error}; this is a bug, please report it")


def _nothing() -> None:
    return None


def _ignore(value: Any, error: BaseException | None) -> None:
    return None
