"""Ours: pushes through a real courier, as a trainer makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import torch
from torch import Tensor, nn

from stretto.bench.team import Team
from stretto.core import Named
from stretto.courier import Courier
from stretto.server import Extent, Rule
from stretto.server.settlement import Spec
from stretto.session import Layout

STRATEGY: Final = "asp(replicas=1)"
"""An agent's push counts one n-th of a step, so with n for a rate one of ones moves every value by -1."""


class Pushes:
    """A courier's pushes of one tensor, and the values that come back: zeros at first, by SGD of that rate.

    All agents make it, :meth:`load` it, and wait for each other, before anybody calls.
    """

    def __init__(self, courier: Courier, nbytes: int, strategy: str, lr: float) -> None:
        self.courier = courier
        self.gradient, self.values = (courier.allocate(nbytes).view(torch.float32) for _ in range(2))
        self._about = courier.allocate(64)
        optimizer = torch.optim.SGD([nn.Parameter(self.values)], lr=lr)
        rule, numel = Rule.of(optimizer), self.values.numel()
        spec = Spec(strategy, (Extent("float32", ((numel, 0),)),), rule)
        layout = Layout(numel, (Named("x", (numel,)),), "float32")
        courier.hold(msgspec.msgpack.encode(spec), [layout], [self.values])
        self._hyper = rule.hyper(optimizer)
        self.gradient.fill_(1.0)

    def load(self) -> None:
        """The first agent's values are the servers'."""
        self.courier.inquire("load", self._about)()

    def call(self) -> None:
        """Push the gradient, and pull the values as they are after it."""
        self.courier.push(1.0, -1, self._hyper, [(self.gradient,)])()


class Ours:
    """One agent of ours. Couriers are forked when it is made, for every size one, before others have threads.

    The agents hold the values between them, one copy of each.
    """

    def __init__(self, team: Team, link: str, sizes: Sequence[int]) -> None:
        self._team = team
        self._couriers = {nbytes: team.courier(epoch(link, nbytes), link) for nbytes in sizes}
        self._pushes: Pushes | None = None

    def room(self, nbytes: int) -> tuple[Tensor, Tensor]:
        self.close()
        self._pushes = Pushes(self._couriers[nbytes], nbytes, STRATEGY, lr=float(self._team.size))
        self._pushes.load()
        self._team.barrier()
        return self._pushes.gradient, self._pushes.values

    def call(self, gradient: Tensor, values: Tensor) -> None:
        assert self._pushes is not None
        self._pushes.call()

    def close(self) -> None:
        if self._pushes is not None:
            self._pushes.courier.close()
            self._pushes = None


def epoch(link: str, nbytes: int) -> str:
    """The name of the run in which agents push so much."""
    return f"{link} {nbytes}"
