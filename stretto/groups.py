"""What one agent exchanges: a group of buckets for each ``prepare()``, in the way that its strategy asks for."""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stretto.buckets import BufferRule, Room, layouts
from stretto.buffers import Buffers
from stretto.core import Strategy
from stretto.courier import Courier
from stretto.delayed import Delayed
from stretto.drifted import Drifted
from stretto.drifts import Drifts
from stretto.errors import UsageError
from stretto.gradients import Gradients, Send, Wait
from stretto.holdings import Holdings
from stretto.loose import Loose
from stretto.notices import notices
from stretto.preparing import is_native, named
from stretto.pushed import Pushed
from stretto.pushing import WORDS, Pushing
from stretto.server.settlement import Spec
from stretto.server.value import Server
from stretto.session import Closing, Layout
from stretto.strategies import allreduce
from stretto.wire import Owner as Wired
from stretto.wire import Wire, at_step, finish


class Owner(Wired, Protocol):
    """Whose groups these are."""

    @property
    def rank(self) -> int: ...
    def closed(self, closing: Closing, *, save: bool, fence: bool) -> None: ...
    def finish(self, work: Coroutine[Any, Any, None]) -> None: ...


class Groups:
    """``late``: we came when others were training."""

    def __init__(self, owner: Owner, courier: Courier | None, holds: Holdings, *, late: bool) -> None:
        self._owner, self._courier, self._holds, self._late = owner, courier, holds, late
        self._groups: list[Gradients | Delayed | Drifts] = []
        self.pushing: Pushing | None = None
        self._turns: deque[Gradients] = deque()
        self._fence = True
        self._in_fence = False

    def add(self, chosen: Strategy, models: list[nn.Module], others: list[Any], buffers: BufferRule) -> None:
        """Exchange ``models`` as ``chosen`` says; ``others`` were prepared with them.

        Raises:
            UsageError: it is not the first, and one of them is exchanged beside training.
        """
        courier, group = self._courier, len(self._groups)
        steady = chosen.signal == "gradient" and not chosen.landing.behind
        if self._holds.loose is not None or (not steady and self._groups):
            raise UsageError(
                f"{chosen}: what is exchanged beside training is prepared once: give prepare() all at once"
            )
        if courier is None and steady:
            return
        if courier is None and chosen.signal == "gradient" and isinstance(chosen.exchange, Server):
            return  # (alone, an optimizer steps by itself)
        room = Room(
            courier.allocate if courier is not None else _allocate,
            apart=courier is not None and courier.apart,
            buffers=buffers,
            leads=lambda: self._owner.rank == 0,
        )
        if courier is not None and isinstance(chosen.exchange, Server):
            self._serve(chosen, chosen.exchange, models, others, room, courier)
            return
        made = self._steady(models, room) if steady else self._beside(chosen, models, others, room)
        self._groups.append(made)
        if courier is not None:
            lies = [*layouts(made.buckets, named(models)), *([] if steady else [Layout(0)])]
            courier.use(group, str(chosen), lies, native=courier.apart and is_native(chosen))

    def weigh(self, share: float) -> None:
        """The next gradients count ``share`` times."""
        for group in self._groups:
            group.weight = share

    def dealt(self) -> None:
        """Batches are dealt from now on: no round is a fence before one is drawn."""
        self._fence = False

    def drew(self) -> None:
        """A batch was drawn: the next round is a fence."""
        self._fence = True

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Inside, backward only adds up."""
        with ExitStack() as stack:
            for group in self._groups:
                stack.enter_context(group.accumulate())
            yield

    def _steady(self, models: list[nn.Module], room: Room) -> Gradients:
        """Gradients, after every backward."""
        owner = self._owner

        def closed(closing: Closing, wished: bool) -> None:
            owner.closed(closing, save=wished, fence=self._in_fence)

        return Gradients(
            models, room, self._sender(len(self._groups)), closed=closed, wishes=owner.wishes, turns=self._turns
        )

    def _beside(self, chosen: Strategy, models: list[nn.Module], others: list[Any], room: Room) -> Drifts | Delayed:
        """What is exchanged while training goes on."""
        holds, late, notice = self._holds, self._late, notices(room)
        wire = Wire(self._owner, self._courier, len(self._groups))
        if chosen.signal == "gradient":
            holds.loose = delayed = Delayed(
                models, room, notice, wire, late=late, begun=lambda one: finish(one.exchange())
            )
            return delayed
        drifts = Drifts(models, chosen, room)
        holds.local = [o for o in others if isinstance(o, Optimizer | torch.amp.GradScaler)]
        holds.loose = loose = Loose(chosen, drifts, notice, wire, late=late)
        for optimizer in [o for o in others if isinstance(o, Optimizer)][-1:]:
            optimizer.register_step_post_hook(lambda *_: self._owner.finish(loose.stepped()))
        return drifts

    def _serve(
        self, chosen: Strategy, server: Server, models: list[nn.Module], others: list[Any], room: Room, courier: Courier
    ) -> None:
        """What servers hold."""
        optimizers = [o for o in others if isinstance(o, Optimizer)]
        pushed: Pushed | Drifted
        if chosen.signal == "drift":
            self._holds.local = [o for o in others if isinstance(o, Optimizer | torch.amp.GradScaler)]
            pushed = Drifted(models, chosen, room)
        elif len(optimizers) == 1:
            pushed = Pushed(models, optimizers[0], room, courier.allocate_own)
        else:
            raise UsageError(
                f"{chosen}: {len(optimizers)} optimizers; servers step with one: give prepare() the model with its "
                "optimizer, with a param group for each of its parts"
            )
        group, notice, words = len(self._groups), notices(room), room.allocate(WORDS)
        wire = Wire(self._owner, courier, group)
        self._holds.loose = self.pushing = pushing = Pushing(
            pushed,
            notice,
            words,
            wire,
            late=self._late,
            together=server.staleness == 0,
            buffers=Buffers(models, room),
        )
        spec = Spec(str(chosen), pushed.extents, pushed.rule)
        courier.use(group, str(allreduce()), [Layout(0)])
        courier.hold(msgspec.msgpack.encode(spec), pushed.layouts(named(models)), [b.values for b in pushed.buckets])
        for optimizer in optimizers[-1:]:
            if isinstance(pushed, Pushed):
                optimizer.register_step_pre_hook(lambda *_: self._owner.finish(pushing.stepped()))
                optimizer.register_step_post_hook(lambda *_: pushed.give_back())
            else:
                optimizer.register_step_post_hook(lambda *_: self._owner.finish(pushing.stepped()))
        finish(pushing.begin())

    def _sender(self, group: int) -> Send:
        def send(bucket: int, of: int, x: Tensor, mean: Tensor) -> Wait:
            assert self._courier is not None
            if bucket == 0:
                self._in_fence, self._fence = self._fence, not self._holds.shards
            wait = self._courier.mean(group, x, mean, bucket=bucket, of=of, fence=self._in_fence)
            return lambda: at_step(self._owner.steps, wait)

        return send


def _allocate(nbytes: int) -> Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8)
