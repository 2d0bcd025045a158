"""The trainer of a simulated agent: what a script and :mod:`stretto.agent` do, as one coroutine.

It prepares (all compare what they brought, take the first one's weights, compare those), then trains batch after
batch by the real ledger, in buckets like the real ones. While it waits for an exchange it gives its state to newcomers,
or takes over the state of others, and at no other time.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor

from stretto import state
from stretto.errors import StrettoError
from stretto.ledger import Deal, Ledger, deal
from stretto.links.loop import Waiter
from stretto.session import Closing, Order
from stretto.session.rounds import What
from stretto.simulate.promises import Broken
from stretto.simulate.task import MOMENTUM, RATE, Job, Record

GRADIENTS, NUMBERS = 0, 1


class Process(Protocol):
    """What a trainer needs of the process that it is in."""

    uid: int

    def to_session(self, name: str, *what: Any) -> None: ...
    def sleep(self, seconds: float) -> Waiter: ...
    def stepped(self, round: int, place: str) -> None:
        """A step was applied; its record is at ``place``."""
        ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """The batch under way: how it was dealt, to whom, and which of them we are."""

    deal: Deal
    uids: tuple[int, ...]
    rank: int


class Trainer:
    """``uids``: the members, as of the last round; ``place``: where the record has this state."""

    def __init__(
        self, process: Process, job: Job, record: Record, uids: tuple[int, ...], seed: int, pace: float
    ) -> None:
        self._process, self._job, self._record = process, job, record
        self._random = random.Random(seed)
        self._pace = pace
        self.rank = uids.index(process.uid) if process.uid in uids else 0
        self.uids = uids
        self.place = ""
        self.ledger = Ledger.begin(job.samples, shuffle=False)
        self.ended = self.leaving = False
        self._draw()
        weights = torch.rand(sum(job.sizes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.weights, self.momentum = weights, torch.zeros_like(weights)
        self._ballast = torch.zeros(job.ballast, dtype=torch.uint8)
        self._buckets = [torch.zeros(n + 1, dtype=torch.float64) for n in job.sizes]
        self._memory: Tensor | None = None
        self._scratch = torch.zeros(4096, dtype=torch.uint8)
        self._number = 0
        self._answers: dict[int, Closing | None] = {}
        self._heard: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._hears: Waiter | None = None

    def hear(self, name: str, *what: Any) -> None:
        """The courier says something."""
        self._heard.append((name, what))
        if self._hears is not None:
            hears, self._hears = self._hears, None
            hears.complete()

    async def train(self) -> None:
        await self._prepare()
        while self.ledger.epoch < self._job.epochs and not self.leaving:
            if not self._job.late:
                self._draw()
            if self._job.counts(self.ledger.steps):
                await self._mean_of_number()
            if self._job.late:
                self._draw()
            await self._step()
        self.ended = True

    async def _prepare(self) -> None:
        await self._agree("the models", "model of two buckets", brings=True)
        if self._job.measures:
            await self._one("measure", self._scratch[:16].view(torch.float64))
        raw = self._scratch[: self.weights.nbytes]
        raw.copy_(self.weights.view(torch.uint8))
        await self._one("broadcast", raw)
        self.weights.view(torch.uint8).copy_(raw)
        closing = await self._agree("the weights", str(self.weights.sum().item()))
        if closing is not None and not closing.alone:
            self.place = self._record.begin(self.weights)

    async def _agree(self, about: str, text: str, *, brings: bool = False) -> Closing | None:
        raw = text.encode()
        x = self._scratch[: len(raw)]
        x.copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
        return await self._one("agree", x, about=about, brings=brings)

    async def _mean_of_number(self) -> None:
        x = self._scratch[:8].view(torch.float64)
        x[0] = 1.0
        await self._one("mean", x, group=NUMBERS)

    def _draw(self) -> None:
        self._drawn = Drawn(deal(self.ledger, (1,) * len(self.uids), self._job.batch_size), self.uids, self.rank)

    async def _step(self) -> None:
        dealt, rank = self._drawn.deal, self._drawn.rank
        share = dealt.share(0, rank)
        gradient = self._job.gradient(self.weights, dealt.part(0, rank))
        orders = []
        for number, (bucket, piece) in enumerate(zip(self._buckets, gradient.split(self._job.sizes), strict=True)):
            await self._process.sleep(self._pace * self._random.random())
            torch.mul(piece, share, out=bucket[:-1])
            bucket[-1] = share
            orders.append(self._order("mean", bucket, group=GRADIENTS, bucket=number, of=2, fence=True))
        closings = [await self._wait(order) for order in orders]
        closing = closings[-1]
        assert closing is not None
        self._apply(closing)

    def _apply(self, closing: Closing) -> None:
        whole = closing.whole
        means = [bucket[:-1] if whole else bucket[:-1] / (float(bucket[-1]) or 1.0) for bucket in self._buckets]
        self.momentum.mul_(MOMENTUM).add_(torch.cat(means))
        self.weights.add_(self.momentum, alpha=-RATE)
        dealt, uids = self._drawn.deal, self._drawn.uids
        ranks = [r for r, uid in enumerate(uids) if uid in closing.contributors]
        self.ledger = self.ledger.commit(dealt, 0, ranks)
        contributors = tuple(uids[r] for r in ranks)
        self.place = self._record.commit(self.place, dealt, ranks, contributors, self.weights, self.momentum)
        if not self.weights.isfinite().all():
            raise Broken(f"the weights are {self.weights.tolist()}")
        self._move(closing)
        self._process.stepped(closing.round, self.place)

    def _move(self, closing: Closing | None) -> None:
        if closing is not None and closing.epoch is not None:
            self.uids, self.rank = closing.epoch.uids, closing.rank

    # Orders, and what is asked of us while we wait.

    async def _one(self, what: What, x: Tensor, **more: Any) -> Closing | None:
        closing = await self._wait(self._order(what, x, **more))
        self._move(closing)
        return closing

    def _order(self, what: What, x: Tensor, **more: Any) -> int:
        self._number += 1
        self._process.to_session("order", Order(self._number, what, x, **more))
        return self._number

    async def _wait(self, number: int) -> Closing | None:
        while number not in self._answers:
            if not self._heard:
                self._hears = Waiter()
                await self._hears
            self._serve(*self._heard.popleft())
        return self._answers.pop(number)

    def _serve(self, name: str, what: tuple[Any, ...]) -> None:
        match name:
            case "done":
                self._answers[what[0]] = what[1]
            case "failed":
                error: StrettoError = what[1]
                raise Broken(f"an order failed with {type(error).__name__}: {error}")
            case "donate":
                self._memory = state.pack(self._tree(), self._room)
                self._process.to_session("donated", self._memory)
            case "make_room":
                self._memory = self._room(what[0])[: what[0]]
                self._process.to_session("room", self._memory)
            case "heal":
                self._take_over()
                self._process.to_session("healed")

    def _room(self, nbytes: int) -> Tensor:
        if self._memory is None or len(self._memory) < nbytes:
            return torch.zeros(nbytes, dtype=torch.uint8)
        return self._memory

    def _tree(self) -> dict[str, Any]:
        if not self.place:
            raise Broken("an agent that was never healed gives its state to others")
        return {
            "weights": self.weights,
            "momentum": self.momentum,
            "ballast": self._ballast,
            "uids": list(self._drawn.uids),
            "ledger": msgspec.json.encode(self.ledger).decode(),
            "place": self.place,
        }

    def _take_over(self) -> None:
        assert self._memory is not None
        tree = state.unpack(self._memory)
        self.weights.copy_(tree["weights"])
        self.momentum.copy_(tree["momentum"])
        self.ledger = msgspec.json.decode(tree["ledger"], type=Ledger)
        uids = tuple(tree["uids"])
        self._drawn = Drawn(deal(self.ledger, (1,) * len(uids), self._job.batch_size), uids, 0)
        self.place = tree["place"]
        self._record.check_healed(self.place, self.weights, self.momentum)
