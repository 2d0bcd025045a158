"""Gloo's ``send`` and ``recv`` through ``torch.distributed``, a thread an agent at the server."""

from __future__ import annotations

from datetime import timedelta
from threading import Thread

import torch
import torch.distributed as dist
from torch import Tensor

from stretto.bench.pushing.contender import Ordinary, Values
from stretto.bench.pushing.serving import Ready
from stretto.bench.team import free_port

_SERVER = 0
_LENGTH, _PUSH, _PULL = 1, 2, 3


def serve(agents: int, ready: Ready) -> None:
    port = free_port()
    ready(str(port))
    _join(port, _SERVER, agents)
    values = Values()
    threads = [Thread(target=_answer, args=(1 + rank, values), daemon=True) for rank in range(agents)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _answer(client: int, values: Values) -> None:
    length, gradient = torch.zeros(1, dtype=torch.int64), torch.empty(0)
    while dist.recv(length, client, tag=_LENGTH) is not None and int(length):
        if gradient.nbytes != int(length):
            gradient = torch.empty(int(length) // 4)
        dist.recv(gradient, client, tag=_PUSH)
        dist.send(values.push(gradient), client, tag=_PULL)


def _join(port: int, rank: int, agents: int) -> None:
    where = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", where, timedelta(seconds=600), 1 + agents, rank)


class Client(Ordinary):
    def __init__(self, address: str, rank: int, agents: int) -> None:
        _join(int(address), 1 + rank, agents)
        self._length = torch.zeros(1, dtype=torch.int64)

    def call(self, gradient: Tensor, values: Tensor) -> None:
        self._length[0] = gradient.nbytes
        on_their_way = [dist.isend(self._length, _SERVER, tag=_LENGTH), dist.isend(gradient, _SERVER, tag=_PUSH)]
        dist.recv(values, _SERVER, tag=_PULL)
        for work in on_their_way:
            assert work is not None
            work.wait()

    def close(self) -> None:
        self._length[0] = 0
        dist.send(self._length, _SERVER, tag=_LENGTH)
