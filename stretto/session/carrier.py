"""Carries orders out: one exchange each, on a copy of what the trainer gave."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import Tensor

from stretto.core import Link, Network, State, Strategy
from stretto.errors import Disagreement, PeerLost, UsageError
from stretto.exchanges import agree, broadcast, measure
from stretto.session.rounds import Order, Round
from stretto.session.surroundings import Surroundings


class Carrier:
    """Knows each group's strategy, what its codec must remember of each bucket, and the network as it was agreed on."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._strategies: dict[int, Strategy] = {}
        self._codec: dict[tuple[int, int], State] = {}
        self._spare: dict[tuple[torch.dtype, int], list[Tensor]] = {}
        self.network = Network()

    def use(self, group: int, strategy: Strategy) -> None:
        """Average the buckets of ``group`` by ``strategy``.

        Raises:
            UsageError: it exchanges something else than gradients.
        """
        if strategy.signal != "gradient":
            raise UsageError(
                f"{strategy} exchanges the {strategy.signal}; this version exchanges gradients: use allreduce"
            )
        self._strategies[group] = strategy

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
        key, strategy = (order.group, order.bucket), self._strategies[order.group]
        (mean,), state = await strategy.exchange.mean(link, [x], strategy.codec, self._codec.get(key), r.number)
        self._codec[key] = state
        return mean


async def _compare(r: Round, link: Link, order: Order) -> None:
    """Who learns of a difference may end at once: so nobody does before all have heard."""
    try:
        await agree(link, order.about, order.text)
    except Disagreement as e:
        r.verdict = e
        with suppress(PeerLost):
            await agree(link, "who has heard", "")
        raise
