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


@pytest.mark.parametrize("size", [3, 1])
@pytest.mark.parametrize("kind", ["momentum", "adam"])
@pytest.mark.parametrize("strategy", ["bsp", "bsp(slot=1024)", "bsp(codec=feedback(topk(0.1)))"])
def test_bsp_goes_on_from_a_checkpoint_bit_for_bit(strategy: str, kind: str, size: int, tmp_path: Path) -> None:
    place = str(tmp_path / "saved")
    before = agents(size, train, strategy, kind, 2, place, 3)
    lives = agents(size, train, strategy, kind, 2, place)
    whole = agents(size, train, strategy, kind, 2)
    assert all(life["resumed"] for life in lives)
    assert samples(before, lives) == Counter(list(range(SAMPLES)) * 2)
    for life, other in zip(lives, whole, strict=True):
        assert (life["digest"], life["proof"], life["steps"]) == (other["digest"], other["proof"], other["steps"])
    assert [life["begun"]["digest"] for life in lives] == [life["digest"] for life in before]


@pytest.mark.parametrize("kind", ["momentum", "adam"])
@pytest.mark.parametrize("strategy", ["bsp(slot=1024)", "ssp(2, slot=1024)", "asp(slot=1024)"])
@pytest.mark.parametrize(("before", "after"), [(3, 3), (3, 2), (2, 3), (3, 1), (1, 3)])
def test_as_many_fewer_or_more_go_on_where_all_were(
    before: int, after: int, strategy: str, kind: str, tmp_path: Path
) -> None:
    """From the same weights, with every sample once in all."""
    place = str(tmp_path / "saved")
    first = agents(before, train, strategy, kind, 2, place, 3)
    lives = agents(after, train, strategy, kind, 2, place)
    assert all(life["resumed"] for life in lives)
    assert len({life["digest"] for life in lives}) == 1
    assert {life["begun"]["digest"] for life in lives} == {life["digest"] for life in first}
    assert all(f"{SAMPLES} samples, each exactly once in each of 2 epochs" in life["proof"] for life in lives)
    assert samples(first, lives) == Counter(list(range(SAMPLES)) * 2)
