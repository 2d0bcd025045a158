"""With staleness 0, real agents on servers do what they do with all-reduce: the same samples, the same weights."""

from __future__ import annotations

import pytest
from lives import SAMPLES, close
from processes import agents
from pushers import OPTIMIZERS, train

pytestmark = pytest.mark.network


@pytest.mark.parametrize(
    ("kind", "size", "link"),
    [
        *((kind, size, "tcp") for kind in sorted(OPTIMIZERS) for size in (2, 4)),
        ("momentum", 1, "tcp"),
        ("adam", 3, "shm"),
        ("momentum", 4, "shm"),
    ],
)
def test_bsp_is_all_reduce(kind: str, size: int, link: str) -> None:
    """Sample by sample and step by step, also where agents' batches differ in size, and over the end of an epoch."""
    served, reduced = (agents(size, train, s, kind, link=link) for s in ("bsp", "allreduce"))
    for one, other in zip(served, reduced, strict=True):
        assert one["drawn"] == other["drawn"]
        assert one["proof"] == other["proof"] and f"{SAMPLES} samples, each exactly once in each of 2" in one["proof"]
        assert close(one["weights"], other["weights"], within=1e-12)
    assert len({life["digest"] for life in served}) == 1


def test_two_runs_are_the_same_to_the_bit_however_the_model_is_cut_and_whoever_keeps_copies() -> None:
    runs = [agents(3, train, s) for s in ("bsp", "bsp", "bsp(slot=1024)", "bsp(replicas=1)", "bsp(replicas=3)")]
    assert runs[1:] == runs[:-1]
