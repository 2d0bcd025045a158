"""What is torn, damaged or of two starts is never read as a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from places import LATER, RUN, Said, content_of, counter, damage, opened, own, part_of, shared, write_all

from stretto.checkpoint import Name, Part, cut, digest, flatten
from stretto.checkpoint.layout import Stored
from stretto.checkpoint.part import manifest
from stretto.errors import DataError


def test_a_damaged_tensor_is_named_and_the_older_checkpoint_is_taken(where: str) -> None:
    said = Said()
    place = opened(where, say=said)
    write_all(place, 1)
    write_all(place, 2)
    damage(place, f"{Name(RUN, 2, 3)}/part-1.safetensors")
    newest = place.latest()
    assert newest is not None and newest.step == 1
    assert f"{RUN}/step-000000000002-of-3/part-1.safetensors: tensor own.random is damaged" in said[0]
    with pytest.raises(DataError, match=r"own\.random is damaged"):
        place.verify(place.at(2))
    with pytest.raises(DataError, match=r"own\.random is damaged"):
        place.own(place.at(2), 1)


@pytest.mark.parametrize("name", ["part-0.json", "part-0.safetensors"])
@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_file_that_is_cut_short_is_noticed(where: str, name: str, size: int) -> None:
    said = Said()
    place = opened(where, say=said)
    write_all(place, 1)
    path = f"{Name(RUN, 1, 3)}/{name}"
    place.place.put(path, [content_of(place, path)[:size]])
    assert place.latest() is None
    assert "damaged or cut short" in said[0] or f"has {size} bytes of" in said[0]


@given(st.integers(0, 2**20), st.integers(1, 255), st.sampled_from(["json", "safetensors"]))
def test_no_flipped_bit_is_ever_read_as_something_else(at: int, mask: int, kind: str) -> None:
    where = f"memory://flipped-{next(counter)}"
    place = opened(where)
    write_all(place, 1, 2)
    path = f"{Name(RUN, 1, 2)}/part-1.{kind}"
    damage(place, path, at % len(content_of(place, path)), mask)
    found = place.latest()
    if found is not None:  # a bit of the envelope that says nothing
        assert digest(*place.shared(found)) == digest(*shared(1))
        assert [digest(*place.own(found, p)) for p in range(2)] == [digest(*own(1, p)) for p in range(2)]


def test_a_file_of_another_format_is_refused_in_words(where: str) -> None:
    said = Said()
    place = opened(where, say=said)
    write_all(place, 1, 1)
    path = f"{Name(RUN, 1, 1)}/part-0.json"
    place.place.put(path, [json.dumps(json.loads(content_of(place, path)) | {"format": 9}).encode()])
    assert place.latest() is None and "it has format 9, and this version reads 1; use the version that wrote" in said[0]


def test_parts_that_disagree_about_what_all_share_are_no_checkpoint(where: str) -> None:
    said = Said()
    place = opened(where, say=said)
    place.write(part_of(1, 0, 2))
    other = flatten({"model": {}, "lr": 0.5})
    place.write(cut(1, 1, 2, shared=other, own=own(1, 1)))
    assert place.latest() is None and "its parts 0 and 1 disagree" in said[0]


def test_a_part_in_the_place_of_another_is_noticed(where: str) -> None:
    said = Said()
    place = opened(where, say=said)
    write_all(place, 1, 2)
    folder = Name(RUN, 1, 2)
    for kind in ("json", "safetensors"):
        place.place.put(f"{folder}/part-1.{kind}", [content_of(place, f"{folder}/part-0.{kind}")])
    assert place.latest() is None and "its part 1 says that it is part 0 of 2 of step 1" in said[0]


def test_parts_of_two_starts_never_mix_and_the_later_start_is_newer(where: str) -> None:
    first, second = opened(where), opened(where, run=LATER)
    write_all(first, 9, 2)
    write_all(second, 5, 2)
    first.write(part_of(10, 0, 2))
    second.write(part_of(10, 1, 2))
    newest = first.latest()
    assert newest is not None and newest.name == Name(LATER, 5, 2)


def test_who_is_killed_while_writing_leaves_nothing_that_is_chosen(tmp_path: Path) -> None:
    place = opened(str(tmp_path))
    write_all(place, 1, 1)
    pid = os.fork()
    if pid == 0:

        def dying() -> Iterator[bytes]:
            yield b"half"
            os._exit(9)

        place.place.put(f"{Name(RUN, 2, 1)}/part-0.safetensors", dying())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    newest = place.latest()
    assert newest is not None and newest.step == 1
    write_all(place, 2, 1)
    assert sorted(os.listdir(tmp_path / str(Name(RUN, 2, 1)))) == ["part-0.json", "part-0.safetensors"]


def test_a_manifest_that_does_not_add_up_is_refused_before_memory_is_taken() -> None:
    said = Said()
    place = opened("memory://sums", say=said)
    huge = Stored("shared", 0, "w", "float32", (2**40,), "00")
    part = part_of(1, 0, 1)
    lie = Part(1, 0, 1, part.shared, part.own, ((huge, torch.empty(0)),))
    place.place.put(f"{Name(RUN, 1, 1)}/part-0.json", [manifest(lie, RUN, 100, ["00"])])
    place.place.put(f"{Name(RUN, 1, 1)}/part-0.safetensors", [bytes(100)])
    assert place.latest() is None and "the manifest of its part 0 does not add up" in said[0]
