"""Ray: the server is an actor, gradients and values travel through its object store, as they do for its users.

A cluster of one node, on loopback, with a token and a folder of its own. What is not small lies in shared memory, and
values are copied from there to where the agent has them.
"""

from __future__ import annotations

import importlib
import os
import secrets
import signal
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from stretto.bench.pushing.contender import Ordinary, Values
from stretto.bench.pushing.serving import Ready
from stretto.bench.team import end_with_parent

_NAME = "stretto-bench"
_STORE = 2 << 30


class Holder:
    """The actor. Every agent's call has a thread."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._values = Values()

    def push(self, gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._values.push(from_dlpack(gradient)).numpy()


def serve(agents: int, ready: Ready) -> None:
    end_with_parent(signal.SIGTERM)  # killed, we would leave some of Ray's own processes
    token = secrets.token_hex(32)
    ray = _ray(token)
    with TemporaryDirectory(prefix="stretto-ray-", ignore_cleanup_errors=True) as folder:
        _init(ray, include_dashboard=False, num_cpus=2, object_store_memory=_STORE, _temp_dir=folder)
        try:
            options = {"name": _NAME, "max_concurrency": agents, "num_cpus": 0}
            holder = ray.remote(Holder).options(**options).remote()
            ray.get(holder.__ray_ready__.remote())
            ready(f"{ray.get_runtime_context().gcs_address} {token}")
            signal.pause()
        finally:
            ray.shutdown()


class Client(Ordinary):
    def __init__(self, address: str, rank: int, agents: int) -> None:
        where, token = address.split()
        self._ray = _ray(token)
        _init(self._ray, address=where)
        self._holder = self._ray.get_actor(_NAME)

    def call(self, gradient: Tensor, values: Tensor) -> None:
        np.copyto(values.numpy(), self._ray.get(self._holder.push.remote(gradient.numpy())))

    def close(self) -> None:
        self._ray.shutdown()


def _ray(token: str) -> Any:
    """Ray reads these when it is imported."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    return importlib.import_module("ray")


def _init(ray: Any, **more: Any) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    ray.init(namespace=_NAME, _node_ip_address="127.0.0.1", **quiet, **more)
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # its own writes a report of who ended it
