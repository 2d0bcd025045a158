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
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stretto.core import Network, Payload, Strategy
from stretto.errors import DataError, PeerLost, StrettoError
from stretto.membership.messages import Report, View
from stretto.membership.settle import settle
from stretto.server.settlement import Spec
from stretto.session import views
from stretto.session.carrier import Carrier, as_ours
from stretto.session.dealing import Dealing
from stretto.session.healing import Healing
from stretto.session.held import REAL, Makers
from stretto.session.lanes import Layout, Place
from stretto.session.mixing import Mixer
from stretto.session.rounds import Closing, Order, Round, exchange_number
from stretto.session.serving import Serving
from stretto.session.settling import Settling, redone
from stretto.session.surroundings import Surroundings, Trainer


class Session:
    """One agent in a run. ``me`` is its uid."""

    def __init__(self, me: int, surroundings: Surroundings, trainer: Trainer, makers: Makers = REAL) -> None:
        self._me, self._around, self._trainer = me, surroundings, trainer
        self._carrier = Carrier(surroundings)
        self._mixer = Mixer(surroundings, trainer, self._carrier.meter, self.refuse)
        self._serving = Serving(me, surroundings, trainer, self._carrier.meter, self.refuse, makers)
        self._view: View | None = None
        self._rank = 0
        self._frozen = self._expected = self._held = False
        self._number = 1
        self._round: Round | None = None
        self._healed = True
        self._brought = hashlib.blake2s(digest_size=8)
        self._labels: dict[int, int] = {}
        self._dealing = Dealing(me)
        self._refused: StrettoError | None = None
        self._healing = Healing(surroundings, trainer, self.refuse)
        self._settling = Settling(surroundings, self._carrier, self._arrived)

    # What the trainer asks

    def use(self, group: int, strategy: Strategy, layouts: Sequence[Layout] = ()) -> None:
        """Group ``group`` of buckets, laid out like this, is averaged by ``strategy``."""
        self._carrier.use(group, strategy, layouts)
        self._mixer.use(strategy, layouts)

    def hold_slots(self, spec: Spec, layouts: Sequence[Layout], values: Sequence[Tensor]) -> None:
        """Servers hold what the trainer has; see :meth:`Serving.use`."""
        self._serving.use(spec, layouts, values)

    def push(self, number: int, weight: float, lease: int, hyper: Tensor, parts: Sequence[Payload]) -> None:
        """See :meth:`Serving.push`."""
        if self._refused is not None:
            self._trainer.failed(number, self._refused)
        else:
            self._serving.push(number, weight, lease, hyper, parts)

    def ask(self, number: int, what: str, x: Tensor, clock: int = 0) -> None:
        """See :meth:`Serving.ask`."""
        if self._refused is not None:
            self._trainer.failed(number, self._refused)
        else:
            self._serving.ask(number, what, x, clock)

    def order(self, order: Order) -> None:
        if self._refused is not None:
            self._trainer.failed(order.number, self._refused)
            return
        if order.what == "mix":
            self._mixer.order(order)
            return
        if order.brings:
            self._brought.update(order.text.encode())
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
        self._healing.keep(snapshot, self._round.number)
        if not self._frozen and self._view is not None:
            self._healing.serve(self._view, self._rank)
            self._advance()

    def room(self, memory: Tensor) -> None:
        """Memory for the state that was offered to us."""
        self._healing.room(memory)

    def healed(self) -> None:
        """The trainer has taken the state over."""
        self._healed = True
        self._around.event("healed", round=self._number, nbytes=self._healing.healed())
        if self._frozen:
            self._around.report_again(self.freeze())
        else:
            self._advance()

    def remembered(self) -> dict[str, Any]:
        """What codecs and mixings remember of every bucket, between two rounds, in plain values."""
        return {
            "codecs": self._carrier.remembered(),
            "mixings": self._mixer.remembered(),
            "slots": self._serving.remembered(),
        }

    def restore(self, parts: Sequence[dict[str, Any]], scale: float) -> None:
        """Go on from what one agent, or several, remembered; see :meth:`Carrier.restore`.

        What a mixing remembers goes on only where we are as many as then: ``scale`` is 1.
        """
        try:
            codecs, mixings, slots = ([part[what] for part in parts] for what in ("codecs", "mixings", "slots"))
        except (KeyError, TypeError) as e:
            raise DataError("the checkpoint does not say what codecs remembered: is it of another version?") from e
        self._carrier.restore(codecs, scale)
        self._serving.restore(slots)
        if scale == 1 and mixings:
            self._mixer.restore(mixings[0])

    @property
    def metered(self) -> tuple[float, int, int]:
        """CPU seconds in codecs, and bytes before and after them."""
        meter = self._carrier.meter
        return meter.seconds, meter.dense, meter.coded

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
    def frozen(self) -> bool:
        """Between two epochs?"""
        return self._frozen

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
            delay=self._carrier.network.delay,
            rate=self._carrier.network.rate,
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
        self._settling.direct(direct)
        if direct.round < self._number or self._round is not None:
            return
        self._number = direct.round
        self._settling.forget()
        if direct.begun:
            self._round = self._settling.taken_back(direct)

    def install(self, view: View) -> None:
        """A view is decided. If we are in it, go on in its epoch; else be a candidate."""
        rank = views.rank_in(view, self._me)
        if rank is None:
            self.out()
            return
        self._stop()
        before, self._view = self._view, view
        stays = before is not None and any(report.uid == self._me for report in view.reports)
        if before is not None and not stays:
            self._around.part()
        self._frozen = self._held = self._expected = False
        self._rank = rank
        self._labels |= {seat.uid: seat.label for seat in view.seats}
        epoch = views.epoch_of(view)
        self._around.enter(epoch, rank)
        self._carrier.assume(Network(view.delay, view.rate))
        settlement = settle(view) if stays else None
        place = Place(epoch.number, rank, epoch.agents.hosts)
        self._carrier.enter(place, redone(settlement, self._round))
        self._mixer.enter(place, view.entry)
        self._serving.enter(epoch, rank)
        if before is not None and stays:
            self._dealing.move(view)
            if settlement is not None:
                self._settling.settle(settlement, self._round, before, rank)
        elif view.number == views.FIRST:
            self._dealing.begin(view)
        else:
            self._carrier.forget()
            self._enter_late(view)
        self._around.event("view", **views.told(view), rank=rank)
        self._go_on()

    def out(self) -> None:
        """We are in no view any more: the trainer goes on by itself until its next fence, where it can be healed."""
        self._stop()
        self._around.abandon()
        self._around.part()
        self._view, self._healed = None, False
        self._frozen = self._held = self._expected = False
        self._settling.forget()
        self._serving.out()
        self._dealing.out()
        self._healing.forget()
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
        self._serving.refused(error)

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
                self._trainer.failed(order.number, as_ours(error))
                return
            self._finished(r, order.bucket, value)

        assert self._view is not None
        counts = self._me in views.parts(self._view, r.number).contributors
        r.running[order.bucket] = lambda: None
        cancel = self._around.spawn(self._carrier.carry_out(r, order, link, counts=counts), ended)
        if order.bucket in r.running:
            r.running[order.bucket] = cancel

    def _finished(self, r: Round, bucket: int, result: Tensor) -> None:
        if not r.results:
            self._settling.passed()
            self._healing.passed(r.number)
        r.results[bucket] = result
        self._advance()

    def _arrived(self, bucket: int, result: Tensor) -> None:
        if self._round is not None:
            self._finished(self._round, bucket, result)

    def _advance(self) -> None:
        """Close the round when all is there: its results, the snapshot for newcomers, our own healing."""
        r = self._round
        if r is None or self._view is None:
            return
        due = r.begun and not r.donated and self._healed and not self._healing.ready
        if due and views.newcomers(self._view, r.number):
            r.donated = True
            self._trainer.donate()
            return
        if not (r.begun and r.finished) or not self._healed or (r.donated and not self._healing.ready):
            return
        self._hand_over(r, self._close(r))

    def _hand_over(self, r: Round, closing: Closing) -> None:
        for bucket, order in r.orders.items():
            if r.results[bucket].data_ptr() != order.x.data_ptr():
                order.x.copy_(r.results[bucket])
            self._trainer.done(order.number, closing if bucket == r.of - 1 else None)

    def _close(self, r: Round) -> Closing:
        assert self._view is not None
        parts = r.shared or views.parts(self._view, r.number)
        self._round, self._number = None, r.number + 1
        self._settling.keep(r)
        self._around.event(
            "commit",
            round=r.number,
            fence=r.fence,
            view=self._view.number,
            contributors=[self._labels[uid] for uid in parts.contributors],
        )
        return self._dealing.closing(r, parts)

    # How an epoch begins

    def _enter_late(self, view: View) -> None:
        """A newcomer: its first fence becomes round ``entry`` of the others, without any weight."""
        self._healed, self._number = False, view.entry
        self._dealing.enter_late(view)
        if self._round is not None:
            self._round.number = view.entry
            self._round.results.clear()

    def _go_on(self) -> None:
        """Everything that the end of the last epoch interrupted."""
        r = self._round
        if r is not None and r.shared is None:
            for order in list(r.orders.values()):
                self._run(r, order)
        assert self._view is not None
        if not self._healed:
            self._healing.seek(self._view, self._rank, self._number)
        self._healing.serve(self._view, self._rank)
        self._advance()

    def _stop(self) -> None:
        if self._round is not None:
            self._round.cancel()
        self._settling.stop()
        self._healing.stop()
        self._mixer.stop()
        self._serving.stop()
        if self._view is not None:
            self._around.abandon()
