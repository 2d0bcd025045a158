"""The others: Gloo through ``torch.distributed``, and Open MPI through mpi4py, in the processes of the benchmark."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from stretto.bench.team import Team


class Gloo:
    """``all_reduce`` of the backend that DDP uses on CPUs. It adds; dividing is left outside the clock."""

    adds = True

    def __init__(self, team: Team, port: int) -> None:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            rank=team.rank,
            world_size=team.size,
            timeout=timedelta(seconds=120),
        )

    def room(self, numel: int) -> Tensor:
        return torch.zeros(numel)

    def mean(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    def begin(self, x: Tensor) -> Callable[[], None]:
        """Begin the sum; what is returned waits for it."""
        work = dist.all_reduce(x, async_op=True)
        return lambda: _finish(work)

    def close(self) -> None:
        dist.destroy_process_group()


def _finish(work: dist.Work) -> None:
    work.wait()


class OpenMpi:
    """``Allreduce`` in place, on whatever transport Open MPI chooses: shared memory here. It adds, as Gloo does.

    To be made last: Open MPI does not like a process that forks afterwards.
    """

    adds = True

    def __init__(self) -> None:
        self._mpi = importlib.import_module("mpi4py.MPI")

    @property
    def version(self) -> str:
        text: str = self._mpi.Get_library_version()
        return text.partition(",")[0]

    def room(self, numel: int) -> Tensor:
        return torch.zeros(numel)

    def mean(self, x: Tensor) -> Tensor:
        self._mpi.COMM_WORLD.Allreduce(self._mpi.IN_PLACE, x.numpy())
        return x

    def close(self) -> None:
        self._mpi.Finalize()
