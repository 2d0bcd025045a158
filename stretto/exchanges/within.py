"""The mean among the agents of one machine, which need no network for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from torch import Tensor

from stretto.codecs.identity import Identity
from stretto.core import Cell, Codec, Like, Link, Network, Topology
from stretto.errors import UsageError
from stretto.exchanges.allreduce import AllReduce
from stretto.exchanges.narrow import Narrow
from stretto.text import named
from stretto.topologies.auto import Auto
from stretto.topologies.native import Native

_INSIDE: Final = Network()
"""What a machine is like inside, roughly: it decides how tensors are cut, and what ``auto`` chooses."""


PLAIN: Final = Auto()


@named("within", kind="mixing")
@dataclass(frozen=True)
class Within:
    """Each agent's tensor becomes the mean of those on its machine (``link.hosts``), the same bits at all of these.

    Along ``topology``, and always as it is: no codec is worth its time where no network is crossed. An agent that is
    alone on its machine keeps what it has. Along a ring each of m agents sends 2 (m - 1)/m of the tensor.

    Raises:
        UsageError: ``topology`` is ``native``: that is of all agents.
    """

    topology: Topology = PLAIN
    kind: ClassVar[str] = "mixing"

    def __post_init__(self) -> None:
        if isinstance(self.topology, Native):
            raise UsageError(
                f"{self}: topology=native takes the mean of all agents, not of a machine's: use topology=auto"
            )

    async def mix(self, link: Link, x: Tensor, codec: Codec, cell: Cell, clock: int) -> Tensor:
        """New memory.

        Raises:
            PeerLost: an agent of this machine is gone.
        """
        here = tuple(rank for rank, host in enumerate(link.hosts) if host == link.hosts[link.rank])
        out = x.clone()
        return await AllReduce(self.topology).mean(Narrow(link, here, _INSIDE), out, Identity(), Cell(Like.of(out)))
