"""Which checkpoints stay, and which go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import LATER, RUN, content_of, counter, damage, opened, part_of, shared, write_all

from stretto.checkpoint import Checkpoints, Keep, Name, digest
from stretto.errors import UsageError


def test_the_last_checkpoints_stay_and_torn_ones_go_once_a_newer_is_complete(where: str) -> None:
    place = opened(where, keep=Keep(last=2, every=10))
    for step in (8, 10, 12, 14):
        write_all(place, step, 2)
    place.write(part_of(13, 0, 2))
    place.write(part_of(15, 0, 2))
    assert [n.step for n in place.prune()] == [13, 8]
    assert [n.step for n in place.names()] == [15, 14, 12, 10]
    assert place.prune() == []
    assert all(digest(*place.shared(place.at(s))) == digest(*shared(s)) for s in (10, 12, 14))


def test_what_a_start_before_left_goes_with_its_folder_when_it_is_old(where: str) -> None:
    write_all(opened(where), 1, 2)
    place = opened(where, run=LATER, keep=Keep(last=1))
    place.write(part_of(2, 0, 2))
    assert place.prune() == []
    place.write(part_of(2, 1, 2))
    place.prune()
    assert list(place.place.names("")) == [LATER]


def test_a_damaged_checkpoint_does_not_count_as_one_that_stays(where: str) -> None:
    place = opened(where, keep=Keep(last=1))
    write_all(place, 1, 2)
    write_all(place, 2, 2)
    damage(place, f"{Name(RUN, 2, 2)}/part-1.json", 40)
    assert place.prune() == []
    newest = place.latest()
    assert newest is not None and newest.step == 1


fates = st.sampled_from(["whole", "whole", "whole", "no manifest", "half a manifest", "half the tensors", "nothing"])


@given(st.lists(st.tuples(fates, fates), min_size=1, max_size=6), st.integers(1, 3), st.sampled_from([None, 2]))
def test_whatever_dies_while_writing_the_newest_whole_one_is_chosen_and_stays(
    histories: list[tuple[str, str]], last: int, every: int | None
) -> None:
    where = f"memory://histories-{next(counter)}"
    place = opened(where, keep=Keep(last, every))
    for step, history in enumerate(histories, 1):
        for part, fate in enumerate(history):
            if fate != "nothing":
                place.write(part_of(step, part, 2))
                _leave(place, Name(RUN, step, 2), part, fate)
        whole = [s for s, h in enumerate(histories[:step], 1) if set(h) == {"whole"}]
        expected = whole[-1] if whole else None
        for _ in range(2):
            found = place.latest()
            assert (found.step if found else None) == expected
            place.prune()
        there = {n.step for n in place.names()}
        assert set(whole[-last:]) <= there
        torn = {s for s, h in enumerate(histories[:step], 1) if {"no manifest", "half the tensors", "nothing"} & set(h)}
        assert not expected or not {s for s in there & torn if s < expected}


def _leave(place: Checkpoints, name: Name, part: int, fate: str) -> None:
    """What a process leaves that dies before its part is written."""
    manifest, tensors = f"{name}/part-{part}.json", f"{name}/part-{part}.safetensors"
    for path in {"no manifest": [manifest], "half the tensors": [manifest, tensors]}.get(fate, []):
        content = content_of(place, path)
        place.place.remove(path)
        if path == tensors:
            place.place.put(path, [content[:50]])
    if fate == "half a manifest":
        place.place.put(manifest, [content_of(place, manifest)[:50]])


@pytest.mark.parametrize(("last", "every"), [(0, None), (-1, None), (1, 0)])
def test_the_last_checkpoint_cannot_be_given_up(last: int, every: int | None) -> None:
    with pytest.raises(UsageError, match="the last one stays"):
        Keep(last, every)


def test_strangers_files_in_the_place_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "step-one.txt").write_text("hello")
    (tmp_path / "README").write_text("mine")
    place = opened(str(tmp_path), keep=Keep(last=1))
    write_all(place, 1, 1)
    write_all(place, 2, 1)
    assert [n.step for n in place.names()] == [2, 1]
    place.prune()
    assert sorted(os.listdir(tmp_path)) == sorted(["README", RUN, "notes"])
