"""gRPC, streaming both ways: each agent's calls are one stream of messages of a megabyte, their length before them.

It was quicker than one call each (unary, large limits) at every size, and than its asyncio twin.
"""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import grpc
import torch
from torch import Tensor

from stretto.bench.pushing.contender import Ordinary, Values, raw
from stretto.bench.pushing.serving import Ready

_LENGTH = struct.Struct("<q")
_MESSAGE = 1 << 20
_METHOD = "/stretto.bench/push"
_UNBOUNDED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


def serve(agents: int, ready: Ready) -> None:
    values = Values()

    def push(messages: Iterator[bytes], context: object) -> Iterator[bytes]:
        for gradient in _whole(messages):
            yield from _cut(values.push(gradient))

    server = grpc.server(ThreadPoolExecutor(agents), options=_UNBOUNDED)
    service, _, method = _METHOD[1:].partition("/")
    handlers = {method: grpc.stream_stream_rpc_method_handler(push)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready(f"127.0.0.1:{port}")
    signal.pause()


def _whole(messages: Iterator[bytes]) -> Iterator[Tensor]:
    """Gradients, each received into the same memory."""
    gradient = torch.empty(0)
    for length in messages:
        (nbytes,) = _LENGTH.unpack(length)
        if gradient.nbytes != nbytes:
            gradient = torch.empty(nbytes // 4)
        _fill(raw(gradient), messages)
        yield gradient


def _fill(into: memoryview, messages: Iterator[bytes]) -> None:
    at = 0
    while at < into.nbytes:
        message = next(messages)
        into[at : at + len(message)] = message
        at += len(message)


def _cut(x: Tensor) -> Iterator[bytes]:
    data = raw(x)
    return (bytes(data[at : at + _MESSAGE]) for at in range(0, data.nbytes, _MESSAGE))


class Client(Ordinary):
    def __init__(self, address: str, rank: int, agents: int) -> None:
        self._channel = grpc.insecure_channel(address, options=_UNBOUNDED)
        self._gradients: SimpleQueue[Tensor | None] = SimpleQueue()
        self._answers: Iterator[bytes] = self._channel.stream_stream(_METHOD)(self._messages())

    def _messages(self) -> Iterator[bytes]:
        while (gradient := self._gradients.get()) is not None:
            yield _LENGTH.pack(gradient.nbytes)
            yield from _cut(gradient)

    def call(self, gradient: Tensor, values: Tensor) -> None:
        self._gradients.put(gradient)
        _fill(raw(values), self._answers)

    def close(self) -> None:
        self._gradients.put(None)
        self._channel.close()
