"""Checkpoints of what servers hold: saved while each goes at its own pace, and gone on from by as many, fewer, more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lives import SAMPLES
from processes import agents
from pushers import train

pytestmark = pytest.mark.network


def samples(*runs: list[dict[str, Any]]) -> Counter[int]:
    """How often they drew each."""
    return Counter(s for lives in runs for life in lives for batch in life["drawn"] for s in batch)


@pytest.mark.parametrize(
    ("strategy", "kind", "size"),
    [
        ("bsp", "momentum", 3),
        ("bsp(slot=1024)", "adam", 3),
        ("bsp(slot=1024)", "adam", 1),
        ("bsp(codec=int8, slot=1024)", "momentum", 2),
    ],
)
def test_bsp_goes_on_from_a_checkpoint_bit_for_bit(strategy: str, kind: str, size: int, tmp_path: Path) -> None:
    place = str(tmp_path / "saved")
    before = agents(size, train, strategy, kind, 2, place, 3)
    lives = agents(size, train, strategy, kind, 2, place)
    whole = agents(size, train, strategy, kind, 2)
    assert all(life["resumed"] for life in lives)
    assert samples(before, lives) == Counter(list(range(SAMPLES)) * 2)
    for life, other in zip(lives, whole, strict=True):
        assert (life["digest"], life["proof"]) == (other["digest"], other["proof"])


@pytest.mark.parametrize("strategy", ["bsp(slot=1024)", "ssp(2, slot=1024)", "asp(slot=1024)"])
@pytest.mark.parametrize(("before", "after"), [(3, 3), (3, 2), (2, 3), (3, 1), (1, 3)])
def test_as_many_fewer_or_more_go_on_where_all_were(before: int, after: int, strategy: str, tmp_path: Path) -> None:
    """All from the same weights, with every sample once in all, though each left when it had three batches."""
    place = str(tmp_path / "saved")
    first = agents(before, train, strategy, "adam", 2, place, 3)
    lives = agents(after, train, strategy, "adam", 2, place)
    assert all(life["resumed"] for life in lives)
    assert len({life["digest"] for life in lives}) == 1
    assert len({life["begun"]["digest"] for life in lives}) == 1
    assert all(f"{SAMPLES} samples, each exactly once in each of 2 epochs" in life["proof"] for life in lives)
    assert samples(first, lives) == Counter(list(range(SAMPLES)) * 2)


@pytest.mark.parametrize("size", [3, 2])
@pytest.mark.parametrize("strategies", [("bsp", "allreduce"), ("allreduce", "bsp"), ("asp", "bsp"), ("bsp", "asp")])
def test_another_strategy_goes_on_or_says_why_not(strategies: tuple[str, str], size: int, tmp_path: Path) -> None:
    place = str(tmp_path / "saved")
    first = agents(3, train, strategies[0], "momentum", 2, place, 3)
    lives = agents(size, train, strategies[1], "momentum", 2, place)
    assert all(life["resumed"] for life in lives)
    assert len({life["digest"] for life in lives}) == 1
    assert all(f"{SAMPLES} samples, each exactly once in each of 2 epochs" in life["proof"] for life in lives)
    assert samples(first, lives) == Counter(list(range(SAMPLES)) * 2)
