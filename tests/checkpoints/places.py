"""Places where checkpoints are kept in tests, good and bad, and what is kept there."""

from __future__ import annotations

import io
import itertools
import threading
from typing import Any, ClassVar

import fsspec
import torch
from fsspec.implementations.memory import MemoryFileSystem

from stretto.checkpoint import Checkpoints, Flat, Part, cut, flatten, name_of_run

RUN = name_of_run(1_800_000_000.0, 7)
LATER = name_of_run(1_800_000_001.0, 3)


class ObjectStore(MemoryFileSystem):
    """Objects appear when they are closed; there are no folders to make."""

    protocol = "objects"
    async_impl = True
    store: ClassVar[dict[str, Any]] = {}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "rb":
            return io.BytesIO(super()._open(path, mode).getvalue())
        return _Put(lambda data: MemoryFileSystem._open(self, path, "wb").write(data))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError("an object store was asked to make a bucket")


class _Put(io.BytesIO):
    def __init__(self, put: Any) -> None:
        super().__init__()
        self.put = put

    def close(self) -> None:
        if not self.closed:
            self.put(self.getvalue())
        super().close()


class Unreliable(MemoryFileSystem):
    """Holds writers up until ``gate`` is open, and fails with ``errors`` of them, first one first."""

    protocol = "unreliable"
    store: ClassVar[dict[str, Any]] = {}
    gate: ClassVar[threading.Event] = threading.Event()
    errors: ClassVar[list[Exception]] = []

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "wb":
            assert self.gate.wait(60)
            if self.errors:
                super()._open(path, mode).write(b"half of")
                raise self.errors.pop(0)
        return super()._open(path, mode, **kwargs)


class Away(MemoryFileSystem):
    """Cannot be reached."""

    protocol = "away"

    def __init__(self, **options: Any) -> None:
        raise OSError("no route")


for kind in (ObjectStore, Unreliable, Away):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)

counter = itertools.count()


class Said(list[str]):
    """What was said."""

    def __call__(self, text: str) -> None:
        self.append(text)


def shared(step: int) -> Flat:
    generator = torch.Generator().manual_seed(step)
    model = {f"{i}.weight": torch.randn(3, i + 1, generator=generator) for i in range(5)}
    return flatten({"model": model | {"steps": torch.tensor(step)}, "lr": step / 7, "empty": torch.zeros(0, 3)})


def own(step: int, part: int) -> Flat:
    return flatten({"random": torch.arange(7, dtype=torch.uint8) + part, "who": part, "step": step})


def part_of(step: int, part: int, parts: int) -> Part:
    return cut(step, part, parts, shared=shared(step), own=own(step, part))


def opened(where: str, **options: Any) -> Checkpoints:
    return Checkpoints(where, **({"run": RUN, "say": Said()} | options))


def write_all(place: Checkpoints, step: int, parts: int = 3) -> None:
    for part in range(parts):
        place.write(part_of(step, part, parts))


def content_of(place: Checkpoints, path: str) -> bytes:
    with place.place.open(path) as file:
        return file.read()


def damage(place: Checkpoints, path: str, at: int = -1, mask: int = 1) -> None:
    """Flip bits of one byte."""
    content = bytearray(content_of(place, path))
    content[at] ^= mask
    place.place.put(path, [bytes(content)])
