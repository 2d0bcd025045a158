"""Checkpoints: parts that agents write alone, read whole or not at all, in any place."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors

from stretto.checkpoint import Checkpoints, Flat, Keep, Name, Part, Writer, cut, digest, flatten, name_of_run, restore
from stretto.checkpoint import spread as spread_over
from stretto.checkpoint.layout import CHUNK, Stored, stream
from stretto.checkpoint.part import manifest
from stretto.errors import DataError, UsageError

RUN = name_of_run(1_800_000_000.0, 7)
LATER = name_of_run(1_800_000_001.0, 3)


class ObjectStore(MemoryFileSystem):
    """Objects appear when they are closed; there are no folders to make."""

    protocol = "objects"
    async_impl = True
    store: ClassVar[dict[str, Any]] = {}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "rb":
            return io.BytesIO(super()._open(path, mode).getvalue())
        return _Put(lambda data: MemoryFileSystem._open(self, path, "wb").write(data))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError("an object store was asked to make a bucket")


class _Put(io.BytesIO):
    def __init__(self, put: Any) -> None:
        super().__init__()
        self.put = put

    def close(self) -> None:
        if not self.closed:
            self.put(self.getvalue())
        super().close()


class Unreliable(MemoryFileSystem):
    """Holds writers up until ``gate`` is open, and fails with ``errors`` of them, first one first."""

    protocol = "unreliable"
    store: ClassVar[dict[str, Any]] = {}
    gate: ClassVar[threading.Event] = threading.Event()
    errors: ClassVar[list[Exception]] = []

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "wb":
            assert self.gate.wait(60)
            if self.errors:
                super()._open(path, mode).write(b"half of")
                raise self.errors.pop(0)
        return super()._open(path, mode, **kwargs)


class Away(MemoryFileSystem):
    """Cannot be reached."""

    protocol = "away"

    def __init__(self, **options: Any) -> None:
        raise OSError("no route")


for kind in (ObjectStore, Unreliable, Away):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)

_counter = itertools.count()


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
    return f"{request.param}://bucket/checkpoints-{next(_counter)}"


class Said(list[str]):
    """What was said."""

    def __call__(self, text: str) -> None:
        self.append(text)


def shared(step: int) -> Flat:
    generator = torch.Generator().manual_seed(step)
    model = {f"{i}.weight": torch.randn(3, i + 1, generator=generator) for i in range(5)}
    return flatten({"model": model | {"steps": torch.tensor(step)}, "lr": step / 7, "empty": torch.zeros(0, 3)})


def own(step: int, part: int) -> Flat:
    return flatten({"random": torch.arange(7, dtype=torch.uint8) + part, "who": part, "step": step})


def part_of(step: int, part: int, parts: int) -> Part:
    return cut(step, part, parts, shared=shared(step), own=own(step, part))


def opened(where: str, **options: Any) -> Checkpoints:
    return Checkpoints(where, **({"run": RUN, "say": Said()} | options))


def write_all(place: Checkpoints, step: int, parts: int = 3) -> None:
    for part in range(parts):
        place.write(part_of(step, part, parts))


def content_of(place: Checkpoints, path: str) -> bytes:
    with place.place.open(path) as file:
        return file.read()


def damage(place: Checkpoints, path: str, at: int = -1, mask: int = 1) -> None:
    """Flip bits of one byte."""
    content = bytearray(content_of(place, path))
    content[at] ^= mask
    place.place.put(path, [bytes(content)])


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
    where = f"memory://flipped-{next(_counter)}"
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
    where = f"memory://histories-{next(_counter)}"
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


def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path: Path) -> None:
    place = opened(str(tmp_path))
    write_all(place, 1, 1)
    folder = tmp_path / str(Name(RUN, 1, 1))
    (folder / ".part-0.safetensors.new").symlink_to("/dev/full")
    with pytest.raises(
        DataError, match=r"cannot write .*part-0.safetensors: No space left on device; free space there"
    ):
        write_all(place, 1, 1)
    assert sorted(os.listdir(folder)) == ["part-0.json", "part-0.safetensors"]
    assert place.latest() is not None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB; only root may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a disk of its own needs the right to mount one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_loses_one_checkpoint_and_no_other(small_disk: Path) -> None:
    def sized(step: int, kib: int) -> Part:
        return cut(step, 0, 1, shared=flatten({"w": torch.full((kib, 256), float(step))}), own=flatten({}))

    said = Said()
    place = opened(f"{small_disk}/checkpoints", keep=Keep(last=1), say=said)
    writer = Writer(place)
    for step, kib in ((1, 100), (2, 200), (3, 100)):
        writer.submit(sized(step, kib))
        writer.close()
        newest = place.latest()
        assert newest is not None and newest.step == (1 if step == 2 else step)
    assert (writer.written, writer.failed) == (2, 1)
    assert "step 2 was not written" in said[0] and "No space left on device; free space there" in said[0]
    assert [n.step for n in place.names()] == [3]


def test_a_disk_that_became_read_only_is_named_and_still_read(small_disk: Path) -> None:
    place = opened(str(small_disk))
    write_all(place, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DataError, match="Read-only file system; name a place that can be written to"):
        place.try_out(0)
    with pytest.raises(DataError, match="Read-only file system"):
        place.write(part_of(2, 0, 3))
    assert digest(*place.shared(place.at(1))) == digest(*shared(1))


def test_a_place_that_cannot_be_written_is_named_before_training_begins(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .*file/.*writable-2: Not a directory; name a folder"):
        opened(f"{tmp_path}/file").try_out(2)
    place = opened(f"{tmp_path}/new")
    place.try_out(0)
    assert place.names() == [] and place.place.names(RUN) == {}


def test_a_place_that_cannot_be_read_is_no_empty_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot read .*file: Not a directory"):
        opened(str(tmp_path / "file")).latest()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("the store is odd")])
def test_what_a_store_raises_is_put_into_words(error: Exception) -> None:
    Unreliable.errors.append(error)
    with pytest.raises(
        DataError, match=r"cannot write unreliable://x/.*part-0.safetensors: (No space|the store is odd)"
    ):
        write_all(opened("unreliable://x"), 1, 1)


@pytest.mark.parametrize(
    ("where", "run", "words"),
    [
        ("nowhere://me:secret@host/x", RUN, "cannot keep checkpoints in nowhere://…@host/x"),
        ("nowhere://bucket/x", RUN, "cannot keep checkpoints in nowhere://bucket/x: .*nowhere"),
        ("memory://x", "../up", "a run cannot be named '../up'"),
        ("memory://x", ".hidden", "a run cannot be named"),
    ],
)
def test_what_is_no_place_or_name_is_refused(where: str, run: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Checkpoints(where, run=run)


def test_a_place_that_cannot_be_reached_is_named_without_its_password() -> None:
    with pytest.raises(DataError, match="cannot reach away://…@host/x: no route"):
        Checkpoints("away://me:secret@host/x", run=RUN)


def test_a_manifest_that_does_not_add_up_is_refused_before_memory_is_taken() -> None:
    said = Said()
    place = opened("memory://sums", say=said)
    huge = Stored("shared", 0, "w", "float32", (2**40,), "00")
    part = part_of(1, 0, 1)
    lie = Part(1, 0, 1, part.shared, part.own, ((huge, torch.empty(0)),))
    place.place.put(f"{Name(RUN, 1, 1)}/part-0.json", [manifest(lie, RUN, 100, ["00"])])
    place.place.put(f"{Name(RUN, 1, 1)}/part-0.safetensors", [bytes(100)])
    assert place.latest() is None and "the manifest of its part 0 does not add up" in said[0]


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


# Writing in the background


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
