"""Our own contenders: the link itself, and what a trainer sees of it through its courier."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from stretto import strategies
from stretto.bench.team import Team
from stretto.core import Epoch, Member
from stretto.courier import Courier
from stretto.exchanges.allreduce import AllReduce
from stretto.exchanges.measure import measure
from stretto.links.connect import Switchboard, listen_tcp
from stretto.links.loop import Loop
from stretto.links.mesh import Mesh
from stretto.links.tls import make_certificate
from stretto.topologies import Auto


class BareTcp:
    """The tcp link in the calling thread, as ``dist.all_reduce`` is called: loop, mesh and all-reduce, no courier."""

    adds = False

    def __init__(self, team: Team) -> None:
        listener = listen_tcp("127.0.0.1")
        here = team.gather((float(listener.getsockname()[1]), float(os.getpid())))
        members = tuple(Member(r, "here", int(pid), (f"127.0.0.1:{port:.0f}",)) for r, (port, pid) in enumerate(here))
        self._loop = Loop()
        self._mesh = Mesh(self._loop, team.rank, Epoch(1, members), self._dial)
        self._switchboard = Switchboard(
            self._loop,
            members[team.rank],
            members,
            "a benchmark on loopback",
            make_certificate(),
            unix=False,
            adopt=self._mesh.adopt,
            lose=self._mesh.lose,
        )
        self._switchboard.answer(listener)
        self._number = 0
        self._exchange = AllReduce(Auto())
        self._mesh.network = self._loop.run(measure(self._mesh.link(0)))

    def _dial(self, peer: int) -> None:
        self._switchboard.dial(peer)

    def room(self, numel: int) -> Tensor:
        return torch.zeros(numel)

    def mean(self, x: Tensor) -> Tensor:
        self._number += 1
        self._loop.run(self._exchange.reduce(self._mesh.link(self._number), x))
        self._mesh.forget(self._number)
        return x

    def topology(self, nbytes: int) -> str:
        """What ``auto`` takes for that many bytes."""
        link = self._mesh.link(0)
        chosen = str(Auto().choose(link.hosts, nbytes, link.network))
        self._mesh.forget(0)
        return chosen

    def close(self) -> None:
        self._mesh.bye()
        self._switchboard.close()
        self._mesh.close()


def rooms(courier: Courier, numel: int) -> tuple[Tensor, Tensor]:
    """A tensor (float32) in the courier's memory, and where its mean will lie: the same, or apart."""
    x = courier.allocate(4 * numel).view(torch.float32)
    return x, courier.allocate(4 * numel).view(torch.float32) if courier.apart else x


class ByCourier:
    """What a trainer sees: a tensor in the courier's memory, its mean begun and waited for. ``link`` is tcp or shm."""

    adds = False

    def __init__(self, team: Team, link: str) -> None:
        self._courier = team.courier(link, link)
        self._courier.use(0, str(strategies.allreduce()), native=self._courier.apart)
        self._means: dict[int, Tensor] = {}

    def room(self, numel: int) -> Tensor:
        x, mean = rooms(self._courier, numel)
        self._means[x.data_ptr()] = mean
        return x

    def mean(self, x: Tensor) -> Tensor:
        mean = self._means[x.data_ptr()]
        self._courier.mean(0, x, mean)()
        return mean

    def close(self) -> None:
        self._courier.close()
