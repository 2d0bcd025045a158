"""One of several exchanges that share a link and run side by side: it sees the link, with tags of its own."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from torch import Tensor

from stretto.core import ANY, Link, Message, Network, Payload

_TAGS: Final = 1 << 24


class Lane:
    """The ``number``-th lane of ``link``. It has no all-reduce of the link's own: those must come in one order."""

    def __init__(self, link: Link, number: int) -> None:
        self._link, self._base = link, number * _TAGS
        self.rank, self.size, self.hosts = link.rank, link.size, link.hosts
        self.sleep, self.together, self.drain, self.now = link.sleep, link.together, link.drain, link.now

    @property
    def network(self) -> Network:
        return self._link.network

    @property
    def idle(self) -> bool:
        return self._link.idle

    def post(self, dst: int, payload: Payload, tag: int = 0) -> None:
        self._link.post(dst, payload, self._base + tag)

    def recv(self, src: int = ANY, tag: int = 0, into: Tensor | None = None) -> Awaitable[Message]:
        return self._link.recv(src, self._base + tag, into)
