"""Checkpoints are parts that agents write alone, read whole or not at all, in any place."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from places import RUN, Said, content_of, opened, own, part_of, shared, write_all
from safetensors.torch import load as load_safetensors

from stretto.checkpoint import Name, cut, digest, flatten, restore
from stretto.checkpoint import spread as spread_over
from stretto.checkpoint.layout import CHUNK, stream
from stretto.errors import DataError, UsageError


def test_what_all_parts_wrote_is_read_again_bit_for_bit(where: str) -> None:
    place = opened(where)
    written = [place.write(part_of(12, p, 3)) for p in range(3)]
    found = opened(where, run="").latest()
    assert found is not None and found.name == Name(RUN, 12, 3) and 0 < found.nbytes < sum(written)
    assert digest(*place.shared(found)) == digest(*shared(12))
    for p in range(3):
        assert digest(*place.own(found, p)) == digest(*own(12, p))
    assert restore(*place.own(found, 1))["who"] == 1


def test_each_shared_tensor_is_written_once_and_each_own_by_its_agent(where: str) -> None:
    place = opened(where)
    write_all(place, 4)
    found = place.at(4)
    stored = [(s.state, s.number, p.part) for p in found.parts for s in p.tensors]
    assert sorted(n for state, n, _ in stored if state == "shared") == list(range(len(shared(4).tensors)))
    assert sorted((n, p) for state, n, p in stored if state == "own") == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("parts", [1, 2, 5, 11])
def test_any_number_of_agents_may_have_written(where: str, parts: int) -> None:
    place = opened(where)
    write_all(place, 3, parts)
    found = place.latest()
    assert found is not None
    assert digest(*place.shared(found)) == digest(*shared(3))


def test_a_checkpoint_is_complete_when_its_last_part_is_there_and_not_before(where: str) -> None:
    said = Said()
    place = opened(where, say=said)
    assert place.latest() is None and not said
    write_all(place, 1)
    for part in (2, 0):
        place.write(part_of(2, part, 3))
        newest = place.latest()
        assert newest is not None and newest.step == 1
    assert "step 2" in said[-1] and "torn: of its 3 parts, 1 did not finish" in said[-1]
    place.write(part_of(2, 1, 3))
    newest = place.latest()
    assert newest is not None and newest.step == 2


def test_a_part_without_its_manifest_did_not_finish(where: str) -> None:
    said = Said()
    place = opened(where, say=said)
    write_all(place, 1)
    write_all(place, 2)
    place.place.remove(f"{Name(RUN, 2, 3)}/part-2.json")
    newest = place.latest()
    assert newest is not None and newest.step == 1 and "2 did not finish" in said[0]


def test_a_wanted_step_is_found_or_what_there_is_is_named(where: str) -> None:
    place = opened(where)
    with pytest.raises(DataError, match=r"no checkpoint of step 7; there is no other"):
        place.at(7)
    write_all(place, 3)
    write_all(place, 5)
    place.write(part_of(7, 0, 3))
    assert place.at(3).step == 3
    with pytest.raises(DataError, match=r"no checkpoint of step 7 that is whole: it is torn.*others are of steps 3, 5"):
        place.at(7)
    with pytest.raises(DataError, match="has 3 parts, no part 3"):
        place.own(place.at(3), 3)


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 9))
def test_tensors_are_spread_once_each_and_evenly(sizes: list[int], parts: int) -> None:
    dealt = spread_over(sizes, parts)
    assert len(dealt) == parts and sorted(itertools.chain(*dealt)) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in d) for d in dealt]
    assert max(loads) - min(loads) <= max(sizes, default=0)
    assert dealt == spread_over(sizes, parts)


@pytest.mark.parametrize(("step", "part", "parts"), [(-1, 0, 1), (0, 1, 1), (0, -1, 1), (0, 0, 0)])
def test_parts_that_cannot_be_are_refused(step: int, part: int, parts: int) -> None:
    with pytest.raises(UsageError, match="no checkpoint of step"):
        part_of(step, part, parts)


def test_other_programs_read_the_tensors_as_safetensors() -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]
    state = {str(d): torch.arange(n + 3).to(d).view(1, -1) for n, d in enumerate(dtypes)}
    odd = {"complex": torch.randn(2, 2, dtype=torch.complex64), "scalar": torch.tensor(3.5), "none": torch.zeros(0, 2)}
    place = opened("memory://others")
    place.write(cut(1, 0, 1, shared=flatten({"model": state}), own=flatten(odd)))
    loaded = load_safetensors(content_of(place, f"{Name(RUN, 1, 1)}/part-0.safetensors"))
    assert all(torch.equal(loaded[f"shared.model.{k}"], x) for k, x in state.items())
    assert torch.equal(loaded["own.complex"].view(torch.complex64).view(2, 2), odd["complex"])
    assert loaded["own.scalar"] == 3.5 and loaded["own.none"].shape == (0, 2)


def test_people_can_read_the_facts() -> None:
    place = opened("memory://people")
    write_all(place, 3, 1)
    said = json.loads(content_of(place, f"{Name(RUN, 3, 1)}/part-0.json"))["manifest"]
    assert (said["run"], said["step"], said["parts"]) == (RUN, 3, 1) and said["torch"] == torch.__version__
    assert said["own"]["tree"] == {"dict": [["random", {"tensor": 0}], ["who", 0], ["step", 3]]}
    assert said["shared"]["tensors"][1] == {
        "name": "model.1.weight",
        "dtype": "float32",
        "shape": [3, 2],
        "order": None,
    }


def test_large_tensors_are_written_in_chunks_and_read_whole() -> None:
    flat = flatten({"w": torch.arange(3 * CHUNK // 4 + 5, dtype=torch.int32)})
    place = opened("memory://large")
    part = cut(1, 0, 1, shared=flat, own=flatten({}))
    assert {len(c) for c in stream(part.tensors, [])} >= {CHUNK, 20}
    place.write(part)
    assert digest(*place.shared(place.at(1))) == digest(*flat)


def test_checkpoints_opened_to_read_cannot_be_written() -> None:
    with pytest.raises(UsageError, match="name the run"):
        opened("memory://x", run="").write(part_of(1, 0, 1))
