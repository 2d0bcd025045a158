"""ZeroMQ through pyzmq: DEALER at the agents, ROUTER at the server, messages without a copy in Python."""

from __future__ import annotations

import numpy as np
import torch
import zmq
from torch import Tensor

from stretto.bench.pushing.contender import Ordinary, Values, raw
from stretto.bench.pushing.serving import Ready


def serve(agents: int, ready: Ready) -> None:
    values = Values()
    server = zmq.Context().socket(zmq.ROUTER)
    ready(f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}")
    while True:
        who, message = server.recv_multipart(copy=False)
        gradient = torch.from_numpy(np.frombuffer(message.buffer, np.float32))
        server.send_multipart((who, raw(values.push(gradient))), copy=False)


class Client(Ordinary):
    def __init__(self, address: str, rank: int, agents: int) -> None:
        self._context = zmq.Context()
        self._server = self._context.socket(zmq.DEALER)
        self._server.connect(address)

    def call(self, gradient: Tensor, values: Tensor) -> None:
        self._server.send(raw(gradient), copy=False)
        raw(values)[:] = self._server.recv(copy=False).buffer

    def close(self) -> None:
        self._context.destroy(linger=0)
