"""How agents come to agree on a tensor, or mix theirs with those of some others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from stretto.core.codec import Codec, State
from stretto.core.like import Like
from stretto.core.link import Link

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Cell:
    """Where an exchange keeps what its codec remembers. It changes in the moment in which that leaves for others.

    ``like`` tells what is exchanged; ``state`` is None before the first time.
    """

    like: Like
    state: State = None


class Exchange(Protocol):
    """How the agents reach agreement on tensors."""

    async def mean(self, link: Link, x: Tensor, codec: Codec, cell: Cell) -> Tensor:
        """The mean of ``x`` over agents, which may be overwritten with it."""
        ...

    def kept(self, codec: Codec, cell: Cell, hosts: tuple[int, ...]) -> Tensor | None:
        """What was held back of this agent's ``x`` so far (float32, flat), among agents on these ``hosts``."""
        ...


class Mixing(Protocol):
    """How an agent's tensor is mixed with those of some others, who need not all agree.

    What comes of it is this agent's alone. It may fail at any agent, and then that one's tensor stays as it was.
    """

    kind: ClassVar[str] = "mixing"

    async def mix(self, link: Link, x: Tensor, codec: Codec, cell: Cell, clock: int) -> Tensor:
        """What ``x`` (1-d, floating, of ``cell.like``; it is not written) becomes at this agent, as new memory.

        Args:
            clock: the agents' common count of steps: who talks to whom may follow from it.
            cell: what this agent remembers of it; None again when an epoch begins.

        Raises:
            PeerLost: somebody who was needed is gone.
        """
        ...


@runtime_checkable
class Served(Protocol):
    """A mixing in which agents answer others while they themselves do something else."""

    async def serve(self, link: Link, codec: Codec, cell: Cell) -> None:
        """Answer whoever asks, from the same ``cell`` and over the same ``link``, until all agree or the epoch ends."""
        ...

    def settle(self, cell: Cell) -> Tensor | None:
        """All are about to agree: give no more, and say what others have added to our tensor that we do not have."""
        ...
