"""Some of the agents of a link, as a link of their own: they are numbered among themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stretto.core import ANY, Link, Message, Network, Payload
from stretto.errors import UsageError


class Narrow:
    """``link`` as only ``ranks`` see it, this agent among them, on a ``network`` of their own.

    It has no all-reduce of the link's own: that is of all agents.
    """

    def __init__(self, link: Link, ranks: tuple[int, ...], network: Network) -> None:
        self._link, self._ranks, self.network = link, ranks, network
        self.rank, self.size = ranks.index(link.rank), len(ranks)
        self.hosts = tuple(link.hosts[rank] for rank in ranks)
        self.sleep, self.together, self.drain, self.now = link.sleep, link.together, link.drain, link.now

    @property
    def idle(self) -> bool:
        return self._link.idle

    def post(self, dst: int, payload: Payload, tag: int = 0) -> None:
        self._link.post(self._ranks[dst], payload, tag)

    def recv(self, src: int = ANY, tag: int = 0, into: Tensor | None = None) -> Awaitable[Message]:
        if src == ANY:
            raise UsageError(f"agent {self._link.rank} cannot receive from any of {self._ranks}: name one of them")
        return _From(self._link.recv(self._ranks[src], tag, into), src)


@dataclass(frozen=True, slots=True)
class _From:
    """A receive that was posted, of which we know from whom, as numbered here."""

    arrival: Awaitable[Message]
    src: int

    def __await__(self) -> Generator[Any, Any, Message]:
        message = yield from self.arrival.__await__()
        return Message(self.src, message.payload)
