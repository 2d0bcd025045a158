"""For the tests of control connections: nodes that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nodes import Node


@pytest.fixture
def node() -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(uid: int, **options: Any) -> Node:
        nodes.append(Node(uid, **options).start())
        return nodes[-1]

    yield make
    for n in nodes:
        n.end()
