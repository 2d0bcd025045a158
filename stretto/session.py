"""The session: one agent's side of the strategy, and the only object that remembers from step to step.

It lives where the link lives: in the courier beside a real trainer, in the coroutine of a simulated one. Everything
it does is a coroutine over a :class:`~stretto.core.Link`, so the two give the same bits.
"""

from __future__ import annotations

from torch import Tensor

from stretto.core import Link, State, Strategy
from stretto.errors import UsageError


class Session:
    """Runs a strategy's exchanges and keeps what its codec must remember of each bucket."""

    def __init__(self, strategy: Strategy) -> None:
        if strategy.signal != "gradient":
            raise UsageError(
                f"{strategy} exchanges the {strategy.signal}; this version exchanges gradients: use allreduce"
            )
        self.strategy = strategy
        self._codec: dict[int, State] = {}

    async def mean(self, link: Link, bucket: int, x: Tensor, step: int) -> None:
        """``x`` (1-d), bucket number ``bucket`` of step ``step``, becomes its mean over the agents, in place.

        Raises:
            PeerLost: an agent left in the middle.
        """
        codec = self.strategy.codec
        state = self._codec.get(bucket)
        (y,), self._codec[bucket] = await self.strategy.exchange.mean(link, [x], codec, state, step)
        if y.data_ptr() != x.data_ptr():
            x.copy_(y)
