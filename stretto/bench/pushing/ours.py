"""Ours: pushes through a real courier, as a trainer makes them, to a server in a process of its own or among agents."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import torch
from torch import Tensor, nn

from stretto.bench.pushing.serving import Ready
from stretto.bench.team import Team, joined
from stretto.core import Named
from stretto.courier import Courier, serve
from stretto.launch.environment import Identity
from stretto.launch.join import arrive
from stretto.membership import Coordinator
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


def serve_one(agents: int, ready: Ready) -> None:
    """A dedicated server, as ``stretto server`` is one, and the coordinator by which agents find it."""
    secret = secrets.token_hex(16)
    with Coordinator(agents, secret, "127.0.0.1", servers=1) as coordinator:
        ready(f"{coordinator.address} {secret}")
        identity = Identity(rank=0, size=agents, servers=1, serves=True, interface="lo")
        serve(arrive(identity, "tcp", coordinator.address, secret))


class Ours:
    """One agent of ours. Couriers are forked when it is made, for every size one, before others have threads.

    ``at``: what :func:`serve_one` said, by bytes. Without it the agents hold the values between them, one copy of each.
    """

    def __init__(self, team: Team, link: str, sizes: Sequence[int], at: Mapping[int, str] | None = None) -> None:
        self._team = team
        self._couriers = {
            nbytes: team.courier(epoch(link, nbytes), link)
            if at is None
            else joined(team.rank, team.size, link, *at[nbytes].split())
            for nbytes in sizes
        }
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
