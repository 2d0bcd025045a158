"""What agents say to each other in the tests of links."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from worlds import KINDS, STREAMS

from stretto.core import ANY, Link

every_kind = pytest.mark.parametrize("kind", KINDS)
every_stream = pytest.mark.parametrize("kind", STREAMS)
MB = 1 << 20


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers)


def numbered(numel: int, seed: int) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


async def arrived(link: Link, src: int = ANY, tag: int = 0) -> list[float]:
    return (await link.recv(src, tag)).payload[0].tolist()


async def met(link: Link) -> None:
    """All are here, before anybody goes on."""
    for tag in (1000, 1001):
        for r in range(link.size):
            if r != link.rank:
                link.post(r, (torch.zeros(0),), tag)
        for r in range(link.size):
            if r != link.rank:
                await link.recv(r, tag)
    await link.drain()


class Gone(Exception):
    """An agent ends here."""


def bits(x: Tensor) -> list[int]:
    return x.contiguous().reshape(-1).view(torch.uint8).tolist() if x.numel() else []
