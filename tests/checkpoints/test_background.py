"""Checkpoints are written in the background: training goes on, and what fails is said and tried again."""

from __future__ import annotations

import errno

import pytest
import torch
from places import RUN, Said, Unreliable, opened, part_of

from stretto.checkpoint import Checkpoints, Keep, Name, Part, Writer, cut, flatten, restore
from stretto.errors import DataError


def test_training_goes_on_while_a_copy_of_its_state_is_written() -> None:
    place = opened("unreliable://background")
    state = {"w": torch.zeros(1000)}
    writer = Writer(place)
    Unreliable.gate.clear()
    assert writer.submit(cut(1, 0, 1, shared=flatten(state), own=flatten({})))
    assert writer.busy
    state["w"] += 1
    Unreliable.gate.set()
    writer.close()
    assert not writer.busy and writer.written == 1
    assert restore(*place.shared(place.at(1)))["w"].sum() == 0


def test_while_one_is_under_way_the_next_is_skipped_and_said() -> None:
    said, done = Said(), list[int]()
    writer = Writer(opened("unreliable://slow", say=said), on_written=lambda step, nbytes: done.append(step))
    Unreliable.gate.clear()
    assert writer.submit(part_of(1, 0, 1))
    assert not writer.submit(part_of(2, 0, 1))
    Unreliable.gate.set()
    writer.close()
    assert writer.submit(part_of(3, 0, 1))
    writer.close()
    assert (writer.written, writer.skipped, writer.failed, done) == (2, 1, 0, [1, 3])
    assert said == [
        "the checkpoint of step 2 is skipped: that of step 1 is still being written; make them rarer, "
        "or name a faster place"
    ]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("odd")])
def test_a_failure_to_write_is_said_and_counted_and_the_next_is_tried(error: Exception) -> None:
    said = Said()
    place = opened("unreliable://full", say=said)
    writer = Writer(place)
    for step in (1, 2, 3):
        if step == 2:
            Unreliable.errors.append(error)
        writer.submit(part_of(step, 0, 1))
        writer.close()
        newest = place.latest()
        assert newest is not None and newest.step == (1 if step == 2 else step)
    assert (writer.written, writer.failed) == (2, 1)
    assert "part 0 of 1 of the checkpoint of step 2 was not written" in said[0] and "(1 failed so far)" in said[0]


def test_no_memory_for_the_copy_is_a_failure_like_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Part) -> Part:
        raise RuntimeError("not enough memory")

    said = Said()
    monkeypatch.setattr(Part, "copy", full)
    writer = Writer(opened("memory://x", say=said))
    assert not writer.submit(part_of(1, 0, 1))
    assert writer.failed == 1 and "not enough memory" in said[0]


def test_the_first_agent_removes_what_is_old_and_says_what_it_cannot() -> None:
    said = Said()
    writer = Writer(opened("unreliable://prune", keep=Keep(last=1), say=said))
    for step in (1, 2, 3):
        writer.submit(part_of(step, 0, 1))
        writer.close()
    assert [n.step for n in opened("unreliable://prune").names()] == [3]

    class Stuck(Checkpoints):
        def prune(self) -> list[Name]:
            raise DataError("cannot remove it")

    writer = Writer(Stuck("memory://stuck", run=RUN, say=said))
    writer.submit(part_of(1, 0, 1))
    writer.close()
    assert said == ["old checkpoints were not removed: cannot remove it"] and writer.written == 1
