"""For the tests of checkpoints: every kind of place, empty and in order before each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from places import ObjectStore, Unreliable, counter


@pytest.fixture(autouse=True)
def _reliable() -> Iterator[None]:
    Unreliable.gate.set()
    yield
    Unreliable.gate.set()
    Unreliable.errors.clear()
    for fs in (MemoryFileSystem, ObjectStore, Unreliable):
        fs.store.clear()
        fs.pseudo_dirs[:] = [""]


@pytest.fixture(params=["folder", "file", "memory", "objects", "unreliable"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param in ("folder", "file"):
        return f"{'file://' if request.param == 'file' else ''}{tmp_path}/deep/checkpoints"
    return f"{request.param}://bucket/checkpoints-{next(counter)}"
