"""Arrow Flight: each agent's calls are one ``DoExchange``, a record batch of one column there and one back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from stretto.bench.pushing.contender import Ordinary, Values
from stretto.bench.pushing.serving import Ready

_SCHEMA = pa.schema([("x", pa.float32())])


class _Server(fl.FlightServerBase):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._values = Values()

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        writer.begin(_SCHEMA)
        for chunk in reader:
            writer.write_batch(_batch(self._values.push(from_dlpack(_column(chunk)))))


def _batch(x: Tensor) -> Any:
    return pa.record_batch([pa.array(x.numpy())], schema=_SCHEMA)


def _column(chunk: Any) -> Any:
    return chunk.data.column(0).to_numpy(zero_copy_only=True)


def serve(agents: int, ready: Ready) -> None:
    server = _Server()
    ready(f"grpc://127.0.0.1:{server.port}")
    server.serve()


class Client(Ordinary):
    def __init__(self, address: str, rank: int, agents: int) -> None:
        self._client = fl.connect(address)
        self._writer, self._reader = self._client.do_exchange(fl.FlightDescriptor.for_path("x"))
        self._writer.begin(_SCHEMA)

    def call(self, gradient: Tensor, values: Tensor) -> None:
        self._writer.write_batch(_batch(gradient))
        np.copyto(values.numpy(), _column(self._reader.read_chunk()))

    def close(self) -> None:
        self._client.close()
