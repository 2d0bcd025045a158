"""Ours: pushes through a real courier, as a trainer makes them."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from stretto.core import Named
from stretto.courier import Courier
from stretto.server import Extent, Rule
from stretto.server.settlement import Spec
from stretto.session import Layout


class Pushes:
    """A courier's pushes of one tensor, and the values that come back: zeros at first, by SGD of that rate.

    All agents make it, :meth:`load` it, and wait for each other, before anybody calls.
    """

    def __init__(self, courier: Courier, nbytes: int, strategy: str, lr: float) -> None:
        self._courier = courier
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
        self._courier.inquire("load", self._about)()

    def call(self) -> None:
        """Push the gradient, and pull the values as they are after it."""
        self._courier.push(1.0, -1, self._hyper, [(self.gradient,)])()
