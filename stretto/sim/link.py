"""One agent's end of the simulated network."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stretto.core import ANY, Message, Network, Payload
from stretto.errors import UsageError
from stretto.sim.waits import Drain, Receive, Sleep, Together

if TYPE_CHECKING:
    from stretto.sim.port import Port
    from stretto.sim.world import World


class SimLink:
    """A :class:`~stretto.core.Link` on a virtual clock."""

    __slots__ = ("_port", "_world", "hosts", "network", "rank", "size")

    def __init__(self, world: World, port: Port) -> None:
        self._world = world
        self._port = port
        self.rank: int = port.rank
        self.size: int = world.size
        self.hosts: tuple[int, ...] = world.hosts
        self.network: Network = world.network

    def post(self, dst: int, payload: Payload, tag: int = 0) -> None:
        """Tensors are copied now: what the sender writes later does not reach the receiver."""
        port = self._port
        lane = port.lanes.get(dst)
        if lane is None:
            lane = self._world.connect(port, self._peer(dst))
        lane.carry(payload, tag)

    def recv(self, src: int = ANY, tag: int = 0, into: Tensor | None = None) -> Awaitable[Message]:
        receive = Receive(self._world, src, tag, into)
        self._port.expect(receive)
        return receive

    @property
    def idle(self) -> bool:
        """Always: what is posted is copied."""
        return True

    def sleep(self, seconds: float) -> Awaitable[None]:
        return Sleep(self._world, seconds)

    def together(self, *coroutines: Coroutine[Any, Any, Any]) -> Awaitable[list[Any]]:
        return Together(self._world, self._port, coroutines)

    def drain(self) -> Awaitable[None]:
        return Drain(self._world, self._port)

    def now(self) -> float:
        return self._world.now

    def _peer(self, rank: int) -> int:
        if not 0 <= rank < self.size or rank == self.rank:
            raise UsageError(f"agent {self.rank} cannot post to agent {rank}: others are 0 … {self.size - 1}")
        return rank


class NativeSimLink(SimLink):
    """A simulated link whose transport has an all-reduce of its own: the sum in the order of ranks."""

    __slots__ = ()

    async def all_reduce(self, x: Tensor, scale: float) -> None:
        """Takes two delays and the bandwidth bound 2(n-1)/n · bytes/rate from when the last agent has called."""
        await self._world.gather(self.rank, x, scale)
