"""Training on servers: batches are asked for, gradients are pushed, values come back; all stop at a fence when need be.

Theory of operation. There are no rounds: an agent asks for samples, trains them, and pushes what it found, in the same
message as the word that they are trained. Only for a checkpoint, a newcomer and the end all must be at the same point:
then whoever asks for samples is told to stop, at a *fence*, and all agree (a round), pull, and agree again. Between
these two rounds nothing moves.

Drifts are pushed after some batches. What was trained and not pushed is *left*: it is pushed when the agent would have
to wait for samples, which may be those that it has itself, and before it stops.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from stretto.buffers import Buffers
from stretto.drifted import Drifted
from stretto.drifts import diverged
from stretto.notices import Given, noticed
from stretto.pushed import Pushed
from stretto.server.leases import Lease
from stretto.server.messages import END, FENCE, GRANTED, WAIT
from stretto.server.stock import read_lease
from stretto.session import Closing

WORDS: Final = (1 << 20) + (1 << 16)
"""Bytes for what is said: about all that is trained, and about the samples of one batch."""
_LEDGER: Final = 1 << 20


class Wire(Protocol):
    """How this agent reaches the others (see :class:`stretto.notices.Wire`), and the servers."""

    def wishes(self) -> tuple[bool, bool]: ...
    def agree(self, given: Sequence[Given], *, fence: bool) -> Awaitable[Closing]: ...

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def saves(self) -> bool:
        """Are checkpoints written?"""
        ...

    def push(self, weight: float, lease: int, hyper: Tensor, parts: Sequence[tuple[Tensor, ...]]) -> Awaitable[bool]:
        """Begin to push; await whether the values are there: else nobody can be reached."""
        ...

    def ask(self, what: str, x: Tensor, clock: int = 0) -> Awaitable[bool]:
        """Begin to ask (:meth:`stretto.session.Session.ask`); await whether somebody answered, in ``x``."""
        ...

    def stood(self, closing: Closing, known: bytes, *, save: bool) -> None:
        """All have stopped; ``known`` (:class:`stretto.server.stock.Known`, as JSON): what is trained."""
        ...


class Pushing:
    """One optimizer's parameters. Every coroutine runs with gradients off.

    Args:
        notice: two tensors, as for :class:`stretto.loose.Loose`.
        words: :data:`WORDS` bytes that the courier sees.
        together: every step is one of all.
        late: we are new: first of all we stop at a fence, where we are let in.
        buffers: become a mean of all agents' at fences.
    """

    def __init__(
        self,
        pushed: Pushed | Drifted,
        notice: tuple[Tensor, Tensor],
        words: Tensor,
        wire: Wire,
        *,
        late: bool,
        together: bool,
        buffers: Buffers | None = None,
    ) -> None:
        self.pushed, self._together, self._buffers = pushed, together, buffers
        self._notice, self._wire, self._late = notice, wire, late
        self._about, self._ledger = words[:-_LEDGER].view(torch.float64), words[-_LEDGER:]
        self._passes = self._fences = self._steps = self._batch = 0
        self._ended = self._leaving = False
        self._coming: Awaitable[bool] | None = None
        self._handed: int | None = None
        self._lease = -1
        self.stands = True
        """Are all at the point of the last fence, as far as one knows?"""
        self.apart = False
        """Has each gone on at its own pace since all agreed on something?"""

    async def begin(self) -> None:
        """The first agent's values are what servers have; all call it at the same point."""
        self.pushed.move_in()
        if not self._late:
            await self._wire.ask("load", self._about)
            await self._agree(fence=False)
            await self._pull()

    async def deal(self, terms: bytes, batch: int) -> None:
        """A pass over the data begins, on these terms; ``batch`` samples a step are ours."""
        self._batch = batch
        if self._late:
            await self._stop()
            if self._passes:
                return  # the others have begun it, and may be at its end
        self._passes += 1
        self._ended = False
        x = self._ledger[: len(terms)]
        x.copy_(torch.frombuffer(bytearray(terms), dtype=torch.uint8))
        await self._wire.ask("deal", x, self._passes)

    async def next(self, ahead: bool = False) -> Lease | None:
        """What to train next; None at the end, or, ``ahead`` of what we have and did not push, where we would wait."""
        if self._together:
            if ahead:
                return None
            await self._skip()
        about = await self._turn(ahead)
        if about is None and self.pushed.left and not ahead:
            await self._push()
            about = await self._turn()
        return None if about is None else read_lease(about)

    async def give_back(self, number: int) -> None:
        """The samples of that lease will not be trained here."""
        x = self._ledger[:8].view(torch.float64)
        x[0] = number
        await self._wire.ask("return", x)

    def hand_out(self, number: int, share: float) -> None:
        """A batch of that lease is being trained, and counts so many times."""
        self._handed = number
        self.pushed.weigh(share)
        if not self.pushed.due:  # no push will come with the question for what is next
            self._coming = self._coming or self._ask(ahead=True)

    async def stepped(self) -> None:
        """The optimizer makes a step: when it is due, push what was trained, and ask for what is next."""
        self._steps += 1
        self.stands, self.apart = False, not self._together
        self.pushed.trained()
        if not self._batch and (self.pushed.due or self._late):  # nothing is dealt, but there may be a fence
            await self._turn()
        if self._handed is not None:
            self._lease, self._handed = self._handed, None
        if self.pushed.due:
            await self._push(ask=True)

    async def _push(self, *, ask: bool = False) -> None:
        """Push what is trained, and go on from what comes back. ``ask`` meanwhile for samples."""
        lease, self._lease = self._lease, -1
        coming = self._wire.push(self.pushed.weight, lease, self.pushed.hyper, self.pushed.take())
        if ask:
            self._coming = self._coming or self._ask()
        self._late |= not await coming
        self.pushed.land()

    async def _pull(self) -> None:
        """Have the values of now."""
        await self._wire.ask("pull", self._about)
        self.pushed.land()

    async def _turn(self, ahead: bool = False) -> Tensor | None:
        """What is said of the samples that are next, when we may go on; None at the end, and if we are not to wait.

        Nor do we wait while something is left.
        """
        while not self._ended:
            coming, self._coming = self._coming, None
            if self._late:
                if coming is not None:
                    await coming  # nobody answered it
                await self._stop()
                continue
            early = ahead or self.pushed.left
            if not await (coming or self._ask(early)):
                self._late = True
                continue
            about = _said(self._about).view(torch.float64)
            if about[0] == FENCE:
                self._fences = int(about[1])
                await self._stop()
            elif about[0] == END and not early:
                self._ended = True
                await self._stop(last=True)
            elif about[0] not in (END, WAIT):
                return about
            elif early:
                return None
        return None

    async def _skip(self) -> None:
        """A batch was handed out and no step made, where every step is one of all: we have nothing to give to it."""
        handed, self._handed = self._handed, None
        if handed is not None:
            nothing = [() for _ in self.pushed.buckets]
            self._late |= not await self._wire.push(0.0, handed, self.pushed.hyper, nothing)

    def _ask(self, ahead: bool = False) -> Awaitable[bool]:
        idle, wish = self._handed is not None and not ahead, self._leaving or any(self._wire.wishes())
        self._about[:5] = torch.tensor([self._batch, wish, self._fences, idle, ahead])
        return self._wire.ask("lease", self._about)

    # Fences

    async def synchronise(self) -> None:
        """All call it after the same number of batches: have the same values."""
        if self.pushed.left and not self._late:
            await self._push()
        if not self._late:
            await self._agree(fence=False, buffers=self._buffers)
            await self._pull()
            await self._agree(fence=False)
            self.apart = False

    async def _stop(self, *, last: bool = False) -> None:
        """All stop here, and go on with the same values.

        Raises:
            Diverged: they are not finite; at all alike.
        """
        if self.pushed.left and not self._late:  # (else what we trained is others' to train)
            await self._push()
        closing = await self._agree(fence=True, buffers=self._buffers)
        if closing.alone:
            return
        self._late = False
        _, save, _, _ = self._notice[1].tolist()
        await self._pull()
        await self._take_stock(closing, save=save > 0, keep=save > 0 or last)
        await self._agree(fence=False)
        if self._notice[1][3] > 0:
            raise diverged(self._steps)

    async def _take_stock(self, closing: Closing, *, save: bool, keep: bool) -> None:
        """Nothing moves, and the values are ours: have the rest of what a checkpoint needs."""
        if not await self._wire.ask("read", self._ledger):
            self._late = True  # we were left out meanwhile
            return
        if self._wire.saves and keep:
            self._about[:2] = torch.tensor([self._wire.rank, self._wire.size])
            await self._wire.ask("keep", self._about)
        self._wire.stood(closing, bytes(_said(self._ledger).numpy()), save=save)
        self.stands, self.apart = True, False

    async def _leave(self) -> None:
        """We go between two fences: where every step is one of all, as all stand who go; else all stop once more."""
        coming, self._coming, self._leaving = self._coming, None, True
        while not (self.stands or self._late):
            if self._together and coming is None:
                await self._pull()
                await self._take_stock(Closing(0, alone=True), save=False, keep=True)
                return
            if not await (coming or self._ask(ahead=True)):
                return
            coming, about = None, _said(self._about).view(torch.float64)
            if about[0] in (FENCE, END):
                self._fences, self._ended = int(about[1]), bool(about[0] == END)
                await self._stop(last=self._ended)
                return
            if about[0] == GRANTED and about.numel() > 2 and not self._together:
                await self.give_back(int(about[2]))

    async def _agree(self, *, fence: bool, buffers: Buffers | None = None) -> Closing:
        flat, mean = self._notice
        wish, door = self._wire.wishes()
        noticed(flat, (wish or (fence and self._leaving), door), lost=not self.pushed.finite)
        given = [Given(0, flat, mean)]
        if buffers is not None and buffers.board():
            given.append(Given(1, buffers.flat, buffers.mean))
        closing = await self._wire.agree(given, fence=fence)
        if len(given) > 1 and buffers is not None and not closing.alone:
            buffers.alight(float(mean[0]))
        return closing

    # What others are given, and what is our own

    def shared(self) -> dict[int, Tensor]:
        """What all have alike in place of a parameter, by its ``id``."""
        return self.pushed.shared()

    def state(self) -> list[Any]:
        return [self._passes, self._fences, self._ended]

    def adopt(self, outers: list[Any]) -> None:
        """We have been given what all share."""
        self.pushed.adopt()
        if outers:
            self._passes, self._fences, self._ended = outers

    async def collect(self) -> None:
        """Nothing is under way between two steps."""

    async def draw(self, end: bool) -> None:
        """Batches are asked for (:meth:`next`)."""

    async def reload(self) -> None:
        """Each has a part of a checkpoint: let it be what servers have."""
        self._passes = self._fences = 0
        self._ended = False
        await self._wire.ask("load", self._about)
        await self._agree(fence=False)
        await self._pull()

    async def own(self) -> None:
        """Nothing is ours alone; but all that is saved is to be as it is at one point (:attr:`stands`)."""
        await self._leave()

    def become_own(self, own: None) -> None: ...


def _said(x: Tensor) -> Tensor:
    """What came in ``x``: how many bytes, then these."""
    raw = x.view(torch.uint8)
    (length,) = raw[:8].view(torch.int64).tolist()
    return raw[8 : 8 + length]
