"""The same small training by agents that exchange beside it: N real ones, and N simulated ones.

The simulated ones run the real :class:`stretto.loose.Loose` (or :class:`stretto.delayed.Delayed`), carrier and mixer,
each on its one link of a world: what is begun is carried out when it is awaited, in the same order at all agents.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from trainings import BATCH, data, digest, model, weights

from stretto.agent import Agent
from stretto.buckets import Room, layouts
from stretto.core import Link, Strategy
from stretto.data import Shard
from stretto.delayed import Delayed
from stretto.drifts import Drifts
from stretto.errors import StrettoError
from stretto.loose import Loose
from stretto.notices import Given, notices
from stretto.preparing import named
from stretto.session import Closing, Layout, Order
from stretto.session.carrier import Carrier
from stretto.session.lanes import Place
from stretto.session.mixing import Mixer
from stretto.session.rounds import Round
from stretto.sim import SimNetwork, World
from stretto.text import parse

WIDTH = 16


def sgd(net: nn.Module, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)


def real(agent: Agent, strategy: str, momentum: float, epochs: int) -> dict[str, Any]:
    """One real agent's training: its weights' digest after every step, and its last weights."""
    net = model(WIDTH)
    net, optimizer = agent.prepare(net, sgd(net, momentum), strategy=strategy)
    digests = [digest(net)]
    for x, y in agent.shard(data(), BATCH, epochs=epochs, seed=3):
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        digests.append(digest(net))
    return {
        "digests": digests,
        "weights": weights(net),
        "hosts": list(agent.epoch.hosts),
        "network": [agent.network.delay, agent.network.rate],
    }


def like(lives: Sequence[dict[str, Any]], *, native: bool) -> World:
    """A simulated world of as many agents, on the same hosts, and on the network that these measured."""
    delay, rate = lives[0]["network"]
    return World(len(lives), SimNetwork(delay, rate), hosts=tuple(lives[0]["hosts"]), native=native)


def simulated(world: World, strategy: str, momentum: float, epochs: int) -> list[dict[str, Any]]:
    """What :func:`real` tells, of every agent of ``world``."""

    async def live(link: Link) -> dict[str, Any]:
        def weigh(share: float) -> None:
            drifts.weight = share

        net = model(WIDTH)
        optimizer = sgd(net, momentum)
        shard = Shard(data(), BATCH, epochs=epochs, seed=3, rank=link.rank, size=link.size, on_batch=weigh, fenced=True)
        drifts, loose = loosely(link, parse(strategy, "strategy"), net, shard)
        digests = [digest(net)]
        for x, y in shard:
            with torch.enable_grad():
                functional.cross_entropy(net(x), y).backward()
            if isinstance(loose, Delayed):
                await loose.exchange()
            optimizer.step()
            optimizer.zero_grad()
            if isinstance(loose, Loose):
                await loose.stepped()
            digests.append(digest(net))
        return {
            "digests": digests,
            "weights": weights(net),
            "hosts": list(link.hosts),
            "network": [link.network.delay, link.network.rate],
        }

    return world.run(live)


def loosely(
    link: Link, strategy: Strategy, net: nn.Module, shard: Shard | None = None
) -> tuple[Drifts, Loose] | tuple[Delayed, Delayed]:
    """What a simulated agent exchanges of its ``net`` over its ``link``, and what knows when that is."""
    room = Room(lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8), leads=lambda: link.rank == 0)
    wire = Wire(link, shard)
    if strategy.signal == "gradient":
        delayed = Delayed([net], room, notices(room), wire, late=False, begun=lambda _: None)
        wire.use(strategy, layouts(delayed.buckets, named([net])))
        return delayed, delayed
    drifts = Drifts([net], strategy, room)
    wire.use(strategy, layouts(drifts.buckets, named([net])))
    return drifts, Loose(strategy, drifts, notices(room), wire, late=False)


class Wire:
    """A simulated agent's wire, and all that its carrier and its mixer ask for."""

    def __init__(self, link: Link, shard: Shard | None) -> None:
        self._link, self._shard = link, shard
        self._rounds = self._orders = 0
        self._work: tuple[Coroutine[Any, Any, Any], Callable[[Any, Any], None]] | None = None
        self._carrier = Carrier(self)  # type: ignore[arg-type]
        self._mixer = Mixer(self, self, self._carrier.meter, self.refuse)  # type: ignore[arg-type]
        place = Place(1, link.rank, link.hosts)
        self._carrier.enter(place, None)
        self._mixer.enter(place, 0)

    def use(self, strategy: Strategy, lies: Sequence[Layout]) -> None:
        self._carrier.use(0, strategy, [*lies, Layout(0)])
        self._mixer.use(strategy, [*lies, Layout(0)])

    # The wire

    @property
    def size(self) -> int:
        return self._link.size

    @property
    def drawn(self) -> int | None:
        return self._shard.drawn if self._shard is not None else None

    @property
    def ends(self) -> bool:
        return self._shard is not None and self._shard.ends

    def wishes(self) -> tuple[bool, bool]:
        return False, False

    def agree(self, given: Sequence[Given], *, fence: bool) -> Awaitable[Closing]:
        self._rounds += 1
        round = Round(self._rounds, len(given), fence)
        return self._agree(round, given, [one.flat.clone() for one in given])

    async def _agree(self, round: Round, given: Sequence[Given], flats: Sequence[Tensor]) -> Closing:
        for bucket, (one, flat) in enumerate(zip(given, flats, strict=True)):
            order = Order(0, "mean", flat, bucket=bucket, of=len(given), fence=round.fence, part=one.part)
            one.mean.copy_(await self._carrier.carry_out(round, order, self._link, counts=True))
        return Closing(round.number, tuple(range(self._link.size)))

    def mix(self, part: int, x: Tensor, clock: int) -> Awaitable[bool]:
        self._orders += 1
        self._mixer.order(Order(self._orders, "mix", x, round=1, part=part, clock=clock))
        work, self._work = self._work, None
        return self._mix(work)

    async def _mix(self, work: tuple[Coroutine[Any, Any, Any], Callable[[Any, Any], None]] | None) -> bool:
        if work is not None:
            coroutine, ended = work
            ended(await coroutine, None)
        return True

    def closed(self, closing: Closing, *, save: bool, but: int) -> None:
        if self._shard is not None:
            self._shard.committed(closing.contributors, but=but)

    # What the carrier and the mixer are given, and whom they tell

    def link(self, exchange: int) -> Link:
        return self._link

    def forget(self, exchange: int) -> None: ...

    def spawn(self, coroutine: Coroutine[Any, Any, Any], ended: Callable[[Any, Any], None]) -> Callable[[], None]:
        self._work = coroutine, ended
        return lambda: None

    def cpu(self) -> float:
        return 0.0

    def done(self, number: int, closing: Closing | None) -> None:
        assert closing is None

    def refuse(self, error: StrettoError) -> None:
        raise error
