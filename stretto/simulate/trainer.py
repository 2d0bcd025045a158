"""The trainer of a simulated agent: what a script and :mod:`stretto.agent` do, as one coroutine.

It prepares (all compare what they brought, take the first one's weights, compare those), then trains by the real
ledger, in buckets like the real ones. While it waits for an exchange it gives its state to newcomers, or takes over
the state of others, and at no other time. What it exchanges, and when, is its kind's.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from stretto import state
from stretto.core import Strategy
from stretto.errors import StrettoError
from stretto.links.loop import Waiter
from stretto.session import Closing, Layout, Order
from stretto.session.rounds import What
from stretto.simulate.promises import Broken
from stretto.simulate.task import Job, Record

BUCKETS, NUMBERS = 0, 1


class Process(Protocol):
    """What a trainer needs of the process that it is in."""

    uid: int

    def to_session(self, name: str, *what: Any) -> None: ...
    def sleep(self, seconds: float) -> Waiter: ...
    def stepped(self, round: int, place: str) -> None:
        """A step was applied; its record is at ``place``."""
        ...


class Trainer(ABC):
    """``uids``: the members, as of the last round; ``place``: where the record has this state.

    ``held``: somebody wants in.
    """

    def __init__(
        self,
        process: Process,
        strategy: Strategy,
        job: Job,
        record: Record,
        uids: tuple[int, ...],
        seed: int,
        pace: float,
    ) -> None:
        self._process, self._strategy, self._job, self._record = process, strategy, job, record
        self._random = random.Random(seed)
        self._pace = pace
        self.rank = uids.index(process.uid) if process.uid in uids else 0
        self.uids = uids
        self.place = ""
        self.ended = self.leaving = self.held = False
        self.weights = torch.rand(sum(job.sizes), generator=torch.Generator().manual_seed(seed), dtype=job.dtype)
        self._ballast = torch.zeros(job.ballast, dtype=torch.uint8)
        self._buckets = [torch.zeros(n + 1, dtype=job.dtype) for n in job.sizes]
        self._memory: Tensor | None = None
        self._scratch = torch.zeros(max(4096, self.weights.nbytes), dtype=torch.uint8)
        self._number = self._round = 0
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
        """From the beginning to the end, or until it is to leave."""
        await self._prepare()
        await self._train()
        self.ended = True

    @property
    def layouts(self) -> Sequence[Layout]:
        """What lies in the buckets that are exchanged."""
        return self._job.layouts

    @abstractmethod
    async def _train(self) -> None: ...
    @abstractmethod
    def _shared(self) -> dict[str, Any]:
        """What all have alike, in plain values."""

    @abstractmethod
    def _adopt(self, tree: dict[str, Any]) -> None:
        """Become what another one's :meth:`_shared` says."""

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

    async def _exchange(self, pieces: Sequence[Tensor], weight: float, pause: float) -> Closing:
        """Give these to the mean, ``weight`` times, with pauses between them; :meth:`_means` has what comes back."""
        orders = []
        for number, (bucket, piece) in enumerate(zip(self._buckets, pieces, strict=True)):
            await self._process.sleep(pause * self._random.random())
            torch.mul(piece, weight, out=bucket[:-1])
            bucket[-1] = weight
            orders.append(
                self._order("mean", bucket, group=BUCKETS, bucket=number, part=number, of=len(pieces), fence=True)
            )
        closing = [await self._wait(order) for order in orders][-1]
        assert closing is not None
        return closing

    def _means(self, closing: Closing) -> list[Tensor]:
        """Of those who took part."""
        return [bucket[:-1] if closing.whole else bucket[:-1] / (float(bucket[-1]) or 1.0) for bucket in self._buckets]

    def _applied(self, closing: Closing, place: str) -> None:
        self.place = place
        if not self.weights.isfinite().all():
            raise Broken(f"the weights are {self.weights.tolist()}")
        self._move(closing)
        self._process.stepped(closing.round, place)

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
        self._process.to_session("order", Order(self._number, what, x, round=self._round + 1, **more))
        return self._number

    async def _wait(self, number: int) -> Closing | None:
        while number not in self._answers:
            if not self._heard:
                self._hears = Waiter()
                await self._hears
            self._serve(*self._heard.popleft())
        closing = self._answers.pop(number)
        if closing is not None and not closing.alone:
            self._round = closing.round
        return closing

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
        return self._shared() | {"ballast": self._ballast, "place": self.place}

    def _take_over(self) -> None:
        assert self._memory is not None
        tree = state.unpack(self._memory.clone())
        self.place = tree["place"]
        self._adopt(tree)
