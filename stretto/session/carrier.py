"""Carries orders out: one exchange each, on a copy of what the trainer gave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import torch
from torch import Tensor

from stretto.codecs import Identity
from stretto.core import Cell, Like, Link, Network, Strategy, mixed
from stretto.errors import DataError, Disagreement, NetworkError, PeerLost, StrettoError
from stretto.exchanges import agree, broadcast, measure
from stretto.session.lanes import Lanes, Layout, Place
from stretto.session.metered import Meter
from stretto.session.rounds import Order, Round
from stretto.session.surroundings import Surroundings

_LOSSLESS: Final = Identity()


class Carrier:
    """Knows each group's strategy, what its codec remembers of each bucket, and the network as it was agreed on."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._strategies: dict[int, Strategy] = {}
        self._lanes: dict[tuple[int, int], Lanes] = {}
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._place = Place(0, 0, (0,))
        self.meter = Meter(around.cpu)
        self._spare: dict[tuple[torch.dtype, int], list[Tensor]] = {}
        self.network = Network()

    def use(self, group: int, strategy: Strategy, layouts: Sequence[Layout] = ()) -> None:
        """Average the buckets of ``group`` by ``strategy``. What another one's codec held back of them is owed.

        ``layouts``: what lies in each bucket; without, they travel as they are.
        """
        self._strategies[group] = strategy
        for bucket, layout in enumerate(layouts):
            self._layouts[group, bucket] = layout
            before = self._lanes.pop((group, bucket), None)
            if before is not None or (strategy.codec != _LOSSLESS and layout.gradients):
                lanes = self._begin(group, bucket)
                if before is not None:
                    lanes.take_over(before)

    def enter(self, place: Place, undo: int | None) -> None:
        """Another epoch begins. Round ``undo`` will be done again; what was held back of all before it is owed."""
        self._place = place
        for lanes in self._lanes.values():
            if undo is not None:
                lanes.undo(undo)
            lanes.flush()

    def forget(self) -> None:
        """We have been out: the others went on without what we held back."""
        for lanes in self._lanes.values():
            lanes.forget()

    def remembered(self) -> list[Any]:
        """What the codecs remember of every bucket, in plain values."""
        return [[list(key), lanes.state()] for key, lanes in sorted(self._lanes.items())]

    def restore(self, parts: Sequence[Any], scale: float) -> None:
        """Go on from what one agent or several remembered; see :meth:`Lanes.restore`.

        Raises:
            DataError: it is damaged, or another model's.
        """
        found: dict[tuple[int, int], list[Any]] = {}
        for (group, bucket), state in (item for part in parts for item in part):
            found.setdefault((group, bucket), []).append(state)
        for key, states in found.items():
            if key not in self._layouts:
                raise DataError(f"the checkpoint has a bucket {key} that these models have not")
            (self._lanes.get(key) or self._begin(*key)).restore(states, self._place, scale)

    def _begin(self, group: int, bucket: int) -> Lanes:
        layout, number = self._layouts[group, bucket], mixed(group, bucket)
        lanes = self._lanes[group, bucket] = Lanes(self._strategies[group], layout, number, self.meter)
        return lanes

    def assume(self, network: Network) -> None:
        """The network is like that."""
        self.network = network
        self._around.measured(network)

    async def carry_out(self, r: Round, order: Order, link: Link, *, counts: bool) -> Tensor:
        """The result of ``order``. Without ``counts`` what we give to an average is zero.

        Raises:
            PeerLost: the epoch is about to end; nothing has changed.
            Disagreement: agents differ in what they must have alike.
        """
        match order.what:
            case "mean":
                x = self._copy(order.x)
                return await self._mean(r, order, link, x if counts else x.zero_())
            case "broadcast":
                x = order.x.clone()
                await broadcast(link, x)
                return x
            case "agree":
                await _compare(r, link, order)
            case "measure":
                self.assume(await measure(link))
                return torch.tensor([self.network.delay, self.network.rate], dtype=torch.float64)
            case "assume":
                self.assume(Network(*order.x.tolist()))
        return order.x

    def recycle(self, results: Iterable[Tensor]) -> None:
        """Nobody reads these any more: the next copies may be made there."""
        for x in results:
            self._spare.setdefault((x.dtype, x.numel()), []).append(x)

    def _copy(self, x: Tensor) -> Tensor:
        spare = self._spare.get((x.dtype, x.numel()))
        return spare.pop().copy_(x) if spare else x.clone()

    async def _mean(self, r: Round, order: Order, link: Link, x: Tensor) -> Tensor:
        lanes = self._lanes.get((order.group, order.part))
        if lanes is None:
            return await self._strategies[order.group].exchange.mean(link, x, _LOSSLESS, Cell(Like.of(x)))
        return await lanes.mean(link, x, self._place, r.number)


def as_ours(error: BaseException) -> StrettoError:
    """Why an exchange failed, in words for who ordered it."""
    if isinstance(error, StrettoError):
        return error
    return NetworkError(f"an exchange failed: {type(error).__name__}: {error}; this is a bug, please report it")


async def _compare(r: Round, link: Link, order: Order) -> None:
    """Who learns of a difference may end at once: so nobody does before all have heard."""
    try:
        await agree(link, order.about, order.text)
    except Disagreement as e:
        r.verdict = e
        with suppress(PeerLost):
            await agree(link, "who has heard", "")
        raise
