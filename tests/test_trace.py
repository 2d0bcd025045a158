"""The trace: events to JSON lines and back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from stretto.errors import DataError
from stretto.trace import LONGEST_LIST, LONGEST_TEXT, Trace, read


def test_what_is_written_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with Trace(path, agent=3) as trace:
        trace.event("step", number=1, loss=0.5, peers=[0, 2])
        trace.event("leave", why=None)
    first, second = read(path)
    assert (first["event"], first["agent"], first["number"], first["loss"], first["peers"]) == (
        "step",
        3,
        1,
        0.5,
        [0, 2],
    )
    assert second["event"] == "leave" and second["why"] is None
    assert second["time"] >= first["time"] and second["wall"] > 1.6e9


def test_a_trace_without_a_path_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Trace(None, 0).event("step")
    assert not list(tmp_path.iterdir())


def test_agents_append_to_one_file_without_tearing_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with Trace(path, 0) as one, Trace(path, 1) as two:
        for _ in range(50):
            one.event("a", text="x" * 300)
            two.event("b", text="y" * 300)
    assert [e["agent"] for e in read(path)] == [0, 1] * 50


def test_fields_are_bounded_whatever_is_passed(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with Trace(path, 0) as trace:
        trace.event(
            "e",
            text="x" * 10_000,
            many=list(range(1000)),
            huge=16**5000,
            nan=math.nan,
            odd=Path("/a"),
            d={1: {2: {3: 4}}},
        )
    (event,) = read(path)
    assert len(event["text"]) == LONGEST_TEXT and len(event["many"]) == LONGEST_LIST
    assert len(event["huge"]) == LONGEST_TEXT and event["nan"] is None and event["odd"] == "/a"
    assert path.stat().st_size < 4096


def test_an_unfinished_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"event":"a"}\n{"event":')
    assert [e["event"] for e in read(path)] == ["a"]


def test_a_damaged_line_is_named_by_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"event":"a"}\nnonsense\n')
    with pytest.raises(DataError, match=r"t\.jsonl, line 2"):
        list(read(path))


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        list(read(tmp_path / "none"))
