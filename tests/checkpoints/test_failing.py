"""A place that is full, cannot be written or is none is named, and costs nothing that was there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from places import RUN, Said, Unreliable, opened, part_of, shared, write_all

from stretto.checkpoint import Checkpoints, Keep, Name, Part, Writer, cut, digest, flatten
from stretto.errors import DataError, UsageError


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
