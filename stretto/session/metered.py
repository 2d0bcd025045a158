"""What codecs cost and save: CPU seconds, and bytes before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor

from stretto.core import Codec, Like, Payload, State


class Meter:
    """Totals over all buckets; ``cpu()`` gives the CPU seconds of this thread.

    ``dense`` counts the bytes of what was encoded, and ``coded`` those of its payloads.
    """

    def __init__(self, cpu: Callable[[], float]) -> None:
        self._cpu = cpu
        self.seconds = 0.0
        self.dense = self.coded = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        begin = self._cpu()
        try:
            yield
        finally:
            self.seconds += self._cpu() - begin

    def count(self, like: Like, payload: Payload, *, first: bool = True) -> None:
        self.dense += like.numel * like.dtype.itemsize if first else 0
        self.coded += sum(t.nbytes for t in payload)


class Metered:
    """``codec``, with what it does on ``meter``."""

    kind: ClassVar[str] = "codec"

    def __init__(self, codec: Codec, meter: Meter) -> None:
        self._codec, self._meter = codec, meter
        self.summable, self.unbiased = codec.summable, codec.unbiased
        self.contracts, self.passes, self.exact = codec.contracts, codec.passes, codec.exact
        self.groups = codec.groups
        self.init, self.kept, self.take = codec.init, codec.kept, codec.take
        self.size, self.bound = codec.size, codec.bound

    def __str__(self) -> str:
        return str(self._codec)

    def encode(self, x: Tensor, like: Like, state: State) -> tuple[Payload, State]:
        with self._meter.timed():
            payload, state = self._codec.encode(x, like, state)
        self._meter.count(like, payload)
        return payload, state

    def refine(self, mean: Payload, like: Like, state: State) -> tuple[Payload, State]:
        with self._meter.timed():
            payload, state = self._codec.refine(mean, like, state)
        self._meter.count(like, payload, first=False)
        return payload, state

    def decode(self, payload: Payload, like: Like, state: State) -> tuple[Tensor, State]:
        with self._meter.timed():
            return self._codec.decode(payload, like, state)
