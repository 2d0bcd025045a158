"""Checkpoints of a run: saved together, gone on from bit for bit, and never a reason to stop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import agents
from torch import nn
from torch.nn import functional

import stretto
from stretto.agent import Agent
from stretto.checkpoint import Checkpoints
from stretto.errors import DataError

pytestmark = pytest.mark.network
SAMPLES, BATCH, EPOCHS = 61, 4, 3
RING = "allreduce(topology=ring)"


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(SAMPLES, 6, generator=generator), torch.randint(3, (SAMPLES,), generator=generator)


def net(width: int = 16) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 3))


def train(
    agent: Agent, place: str | None, strategy: str, steps: int | None = None, every: float = 0.0, width: int = 16
) -> dict[str, Any]:
    """Some steps, or all that are left. Dropout draws on the random generators, the schedule counts, Adam remembers."""
    model = net(width)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    model, optimizer, schedule = agent.prepare(model, optimizer, schedule, strategy=strategy)
    shard = agent.shard(data(), BATCH, epochs=EPOCHS, seed=2)
    torch.manual_seed(100 + agent.rank)
    resumed = agent.checkpoint(place, every=every) if place is not None else False
    for x, y in itertools.islice(shard, steps):
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return {"digest": agent.digest(), "resumed": resumed, "proof": shard.proof(), "steps": agent.steps}


REMEMBERING = ["feedback(topk(0.1))", "feedback(lowrank(1))", "int8(stochastic=true)", "randomk(0.5)", "per_layer"]


@pytest.mark.parametrize(
    "strategy",
    [RING, "allreduce(topology=tree)", "allreduce", *(f"allreduce(topology=ring, codec={c})" for c in REMEMBERING)],
)
@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_what_goes_on_with_as_many_agents_goes_on_bit_for_bit(strategy: str, link: str, tmp_path: Path) -> None:
    place = str(tmp_path / "saved")
    first = agents(3, train, place, strategy, 5, link=link)
    again = agents(3, train, place, strategy, 4, link=link)
    assert (first[0]["steps"], again[0]["steps"]) == (5, 9)
    lives = agents(3, train, place, strategy, link=link)
    assert all(life["resumed"] for life in lives) and len({life["digest"] for life in lives}) == 1
    assert lives[0]["proof"].startswith(f"{SAMPLES} samples, each exactly once in each of {EPOCHS} epochs")
    if strategy != "allreduce":  # auto goes by the network, as it was measured when the run began
        assert lives == [{**life, "resumed": True} for life in agents(3, train, None, strategy, link=link)]


def test_another_number_of_agents_goes_on_with_the_same_weights_and_the_samples_that_are_left(tmp_path: Path) -> None:
    place = str(tmp_path / "saved")
    before = agents(3, train, place, RING, 7)
    after = agents(2, train, place, RING, 0)
    assert after[0]["digest"] == before[0]["digest"] and after[0]["steps"] == 7
    whole = agents(4, train, place, RING)
    assert whole[0]["proof"].startswith(f"{SAMPLES} samples, each exactly once in each of {EPOCHS} epochs")
    assert len({life["digest"] for life in whole}) == 1


def test_one_agent_alone_saves_and_goes_on_too(tmp_path: Path) -> None:
    def alone(steps: int | None) -> dict[str, Any]:
        with stretto.join(environ={}) as agent:
            return train(agent, str(tmp_path / "saved"), "allreduce", steps)

    with stretto.join(environ={}) as agent:
        whole = train(agent, None, "allreduce")
    alone(9)
    rest = alone(None)
    assert rest["resumed"] and (rest["digest"], rest["proof"]) == (whole["digest"], whole["proof"])


def save_somewhere_full(agent: Agent, place: str) -> dict[str, Any]:
    """Once it may write a file to try, nothing more."""
    put = stretto.checkpoint.place.Folder.put

    def full(self: Any, path: str, chunks: Any) -> int:
        if "writable" in path:
            return put(self, path, chunks)
        raise DataError(f"{path}: no space left on device")

    stretto.checkpoint.place.Folder.put = full  # type: ignore[method-assign]
    return train(agent, place, RING)


def test_a_full_disk_is_said_and_training_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lives = agents(2, save_somewhere_full, str(tmp_path / "full"))
    assert [life["digest"] for life in lives] == [life["digest"] for life in agents(2, train, None, RING)]
    assert "no space left on device" in capfd.readouterr().err
    assert Checkpoints(str(tmp_path / "full")).latest() is None


def test_another_models_checkpoint_is_refused_by_the_tensor_that_differs(tmp_path: Path) -> None:
    place = str(tmp_path / "saved")
    agents(2, train, place, RING, 2)
    ends = agents(2, train, place, RING, 2, 0.0, 17, keep_errors=True)
    assert all(isinstance(end, DataError) and "another model" in str(end) for end in ends), ends


def torn(place: Path) -> Iterator[Path]:
    yield from sorted(place.glob("*/*/part-*.safetensors"))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "saved"
    agents(2, train, str(place), RING, 6)
    newest = list(torn(place))[-1]
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes(raw)
    lives = agents(2, train, str(place), RING)
    assert all(life["resumed"] for life in lives)
    assert [life["digest"] for life in lives] == [life["digest"] for life in agents(2, train, None, RING)]
    assert "passed over" in capfd.readouterr().err
