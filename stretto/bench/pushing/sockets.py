"""Two plain TCP sockets with posted receives: the bound that others are measured against.

A thread an agent at the server. A message is its length (8 bytes) and the numbers, which are received where they are
needed: the kernel's two copies are the only ones.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from threading import Thread

import torch
from torch import Tensor

from stretto.bench.pushing.contender import Ordinary, Values, raw
from stretto.bench.pushing.serving import Ready

_LENGTH = struct.Struct("<q")


def serve(agents: int, ready: Ready) -> None:
    values = Values()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready(str(listener.getsockname()[1]))
        threads = [Thread(target=_answer, args=(listener.accept()[0], values), daemon=True) for _ in range(agents)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _answer(client: socket.socket, values: Values) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    length, gradient = bytearray(_LENGTH.size), torch.empty(0)
    with contextlib.suppress(ConnectionError):
        while True:
            _receive(client, memoryview(length))
            (nbytes,) = _LENGTH.unpack(length)
            if gradient.nbytes != nbytes:
                gradient = torch.empty(nbytes // 4)
            _receive(client, raw(gradient))
            client.sendall(raw(values.push(gradient)))


class Client(Ordinary):
    def __init__(self, address: str, rank: int, agents: int) -> None:
        self._server = socket.create_connection(("127.0.0.1", int(address)))
        self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, gradient: Tensor, values: Tensor) -> None:
        data = raw(gradient)
        sent = self._server.sendmsg([_LENGTH.pack(data.nbytes), data]) - _LENGTH.size
        self._server.sendall(data[max(0, sent) :])
        _receive(self._server, raw(values))

    def close(self) -> None:
        self._server.close()


def _receive(source: socket.socket, into: memoryview) -> None:
    while into.nbytes:
        got = source.recv_into(into)
        if not got:
            raise ConnectionError
        into = into[got:]
