"""What a session is given, and whom it serves: real in a courier, and simulated in a simulated process."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import torch
from torch import Tensor

from stretto.core import Epoch, Link, Network
from stretto.errors import StrettoError
from stretto.membership.messages import Report, View
from stretto.session.rounds import Cancel, Closing, Direct

Ended = Callable[[Any, BaseException | None], None]


class Surroundings(Protocol):
    """What a session is given: links of the epoch it is in, somebody who runs coroutines, and the membership's ear."""

    def link(self, exchange: int, *, whole: bool = False) -> Link:
        """Of the epoch's agents, who do not see that there are servers; ``whole``: of all its members."""
        ...

    def forget(self, exchange: int) -> None: ...
    def spawn(self, coroutine: Coroutine[Any, Any, Any], ended: Ended) -> Cancel: ...
    def enter(self, epoch: Epoch, rank: int) -> None: ...
    def abandon(self) -> None: ...
    def part(self) -> None:
        """The others have gone on without us: what connects us to them is of no use any more."""
        ...

    def measured(self, network: Network) -> None: ...
    def ready(self, brought: str) -> None: ...
    def at_fence(self, round: int) -> None: ...
    def report_again(self, report: Report) -> None:
        """We are healed, after we had said that we are not."""
        ...

    def missed(self, peer: int) -> None:
        """An exchange cannot end without that rank."""
        ...

    def lend(self, x: Tensor) -> Tensor | None:
        """Words (int64) by which all others find ``x`` in memory that they see; None where they do not."""
        ...

    def borrow(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor that another one lends."""
        ...

    def event(self, name: str, **fields: Any) -> None: ...
    def cpu(self) -> float:
        """CPU seconds of this thread."""
        ...

    def hold(self) -> None:
        """Let the trainer do no fence by itself."""
        ...

    def direct(self) -> Direct | None:
        """Let the trainer do no more by itself, and say where it is; None where it orders everything from us."""
        ...

    def direct_results(self, round: int) -> dict[int, Tensor]:
        """Of the round that it is in, or passed last, by bucket, when all have done their part."""
        ...


class Orderer(Protocol):
    """The other side of the orders."""

    def done(self, number: int, closing: Closing | None) -> None:
        """Order ``number`` is carried out; with the last one of a round comes its closing."""
        ...

    def failed(self, number: int, error: StrettoError) -> None: ...


class Trainer(Orderer, Protocol):
    """One that trains, and may give, or be given, a state."""

    def donate(self) -> None:
        """Take a snapshot of your state, now that you wait; then call :meth:`Session.donated`."""
        ...

    def make_room(self, nbytes: int) -> None:
        """Call :meth:`Session.room` with so much memory for a state."""
        ...

    def heal(self) -> None:
        """That memory holds the state: take it over, then call :meth:`Session.healed`."""
        ...


class Attendant(Protocol):
    """What the membership asks of a session, an agent's or a server's."""

    def install(self, view: View) -> None: ...
    def freeze(self) -> Report: ...
    def hold(self) -> None: ...
    def out(self) -> None: ...
    def refuse(self, error: StrettoError) -> None: ...
