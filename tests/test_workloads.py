"""Workloads: their data are whole or refused, their models fit them, and the training loop keeps its word."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from stretto import workloads
from stretto.core import Network
from stretto.data import Shard
from stretto.errors import DataError, UnknownName, UsageError
from stretto.workloads import digits, download, idx, shakespeare
from stretto.workloads import train as training
from stretto.workloads.download import Remote, Source, locate
from stretto.workloads.folder import NEWS, News, leave_outcome, outcomes
from stretto.workloads.result import Job, Progress, combine
from stretto.workloads.train import train
from stretto.workloads.workload import Data


def idx_bytes(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_idx_arrays_come_back_as_they_were_written(shape: list[int], random: Any) -> None:
    array = np.frombuffer(random.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
    assert np.array_equal(idx.parse(idx_bytes(array), "x"), array)


@given(st.binary(max_size=64))
def test_fuzz_idx_bytes_are_parsed_or_refused(content: bytes) -> None:
    try:
        array = idx.parse(content, "x")
    except DataError:
        return
    assert idx_bytes(array) == content


@given(st.integers(0, 39), st.integers(0, 255))
def test_fuzz_a_damaged_idx_header_is_refused_or_means_something_else(at: int, byte: int) -> None:
    whole = bytearray(idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4)))
    whole[at] = byte
    try:
        array = idx.parse(bytes(whole), "x")
    except DataError:
        return
    assert array.size == 24


@given(st.integers(0, 200))
def test_fuzz_a_cut_gzip_file_is_refused(tmp_path_factory: pytest.TempPathFactory, at: int) -> None:
    whole = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 256, (4, 50), np.uint8)))
    path = tmp_path_factory.getbasetemp() / "cut.gz"
    path.write_bytes(whole[:at])
    with pytest.raises(DataError, match=r"cut.gz is (truncated|not an IDX)"):
        idx.read(path)


def test_a_file_larger_than_allowed_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.gz"
    path.write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(DataError, match="more than 1000 bytes"):
        idx.read(path, most=1000)


SMALL = (b"some images", b"some labels")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A published data set of two small files, its mirror a folder."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    files = tuple(
        Remote(name, len(content), hashlib.sha256(content).hexdigest())
        for name, content in zip(("images.gz", "labels.gz"), SMALL, strict=True)
    )
    for file, content in zip(files, SMALL, strict=True):
        (mirror / file.name).write_bytes(content)
    return Source("toys", files, (f"file://{tmp_path}/nowhere/", f"file://{mirror}/"))


def test_files_are_fetched_once_from_the_first_mirror_that_answers(source: Source, tmp_path: Path) -> None:
    folder = locate(source, None, cache=tmp_path / "cache")
    assert [(folder / f.name).read_bytes() for f in source.files] == list(SMALL)
    assert sorted(p.name for p in folder.iterdir()) == ["images.gz", "labels.gz"]
    offline = Source(source.name, source.files, ("file:///nowhere/",))
    assert locate(offline, None, cache=tmp_path / "cache") == folder


def test_a_mirror_with_other_bytes_is_not_believed(source: Source, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "labels.gz").write_bytes(b"evil labels")
    with pytest.raises(DataError, match=r"cannot fetch labels.gz.*--data DIR.*other bytes"):
        locate(source, None, cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / "toys" / "labels.gz").exists()


@pytest.mark.parametrize("inside", ["", "toys"])
def test_a_given_directory_may_hold_the_files_or_a_folder_of_them(source: Source, tmp_path: Path, inside: str) -> None:
    (tmp_path / "given" / inside).mkdir(parents=True)
    for file, content in zip(source.files, SMALL, strict=True):
        (tmp_path / "given" / inside / file.name).write_bytes(content)
    assert locate(source, tmp_path / "given") == tmp_path / "given" / inside


def test_a_directory_without_the_files_is_refused_with_what_it_lacks(source: Source, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"toys: .*/empty lacks images.gz, labels.gz"):
        locate(source, tmp_path / "empty")
    (tmp_path / "empty" / "images.gz").write_bytes(SMALL[0])
    with pytest.raises(DataError, match=r"lacks labels.gz"):
        locate(source, tmp_path / "empty")
    with pytest.raises(DataError, match=r"is not a directory.*STRETTO_DATA"):
        locate(source, tmp_path / "none")


def test_damaged_files_are_named_with_what_was_expected_and_found(source: Source, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "images.gz").write_bytes(b"some imagez")
    with pytest.raises(DataError, match=r"images.gz is damaged: expected sha256 .*, found .*; remove it and fetch it"):
        locate(source, tmp_path / "mirror")
    (tmp_path / "mirror" / "images.gz").write_bytes(b"some")
    with pytest.raises(DataError, match=r"truncated or damaged: expected 11 bytes, found 4; remove it"):
        locate(source, tmp_path / "mirror")


def test_digits_are_split_once_for_all_and_scaled_to_one() -> None:
    data = digits.load()
    (x, y), (test_x, test_y) = data.train, data.test
    assert x.shape == (1437, 1, 8, 8) and test_x.shape == (360, 1, 8, 8)
    assert x.min() == 0 and x.max() == 1 and x.dtype == torch.float32
    assert y.shape == (1437,) and y.dtype == torch.int64 and set(test_y.tolist()) == set(range(10))
    assert torch.equal(x, digits.load().train[0])


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data, theirs = digits.load(), load_digits()
    images = torch.cat([data.train[0], data.test[0]]).flatten(1) * 16
    assert sorted(images.int().tolist()) == sorted(theirs.data.astype(int).tolist())
    assert torch.cat([data.train[1], data.test[1]]).bincount().tolist() == np.bincount(theirs.target).tolist()


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'stretto\[digits\]'"):
        digits.load()


@pytest.mark.parametrize(("name", "side"), [("digits", 8), ("mnist", 28), ("fashion-mnist", 28)])
def test_every_model_of_images_maps_them_to_ten_scores(name: str, side: int) -> None:
    workload = workloads.get(name)
    for model in workload.models:
        assert workload.model(model)(torch.rand(3, 1, side, side)).shape == (3, 10)


def test_the_model_that_is_trained_where_none_is_asked_for_is_one_of_the_workload() -> None:
    assert all(workload.usual in workload.models for workload in workloads.WORKLOADS.values())


def test_model_sizes_are_those_that_benchmarks_speak_of() -> None:
    named = {"cnn": "mnist", "mlp-10m": "mnist", "gpt": "shakespeare"}
    sizes = {m: sum(p.numel() for p in workloads.get(w).model(m).parameters()) for m, w in named.items()}
    assert sizes == {"cnn": 421_642, "mlp-10m": 10_020_874, "gpt": 809_856}


def test_a_fresh_gpt_knows_nothing() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(shakespeare.VOCABULARY, (8, shakespeare.CONTEXT + 1))
    scores = workloads.get("shakespeare").model("gpt")(tokens[:, :-1])
    assert scores.shape == (8, shakespeare.CONTEXT, shakespeare.VOCABULARY)
    assert abs(shakespeare.loss(scores, tokens[:, 1:]).item() - math.log(shakespeare.VOCABULARY)) < 0.1


def test_a_gpt_does_not_see_what_comes_later() -> None:
    torch.manual_seed(0)
    model = workloads.get("shakespeare").model("gpt")
    one, other = torch.randint(shakespeare.VOCABULARY, (2, 1, shakespeare.CONTEXT))
    mixed = torch.cat([one[:, :20], other[:, 20:]], dim=1)
    torch.testing.assert_close(model(mixed)[:, :20], model(one)[:, :20])
    torch.testing.assert_close(model(one[:, :20]), model(one)[:, :20])


def test_windows_predict_every_character_once() -> None:
    text = torch.arange(100)
    given, wanted = shakespeare.windows(text, context=8)
    assert wanted.flatten().tolist() == list(range(1, 97)) and torch.equal(wanted, given + 1)


def test_what_was_to_be_said_is_counted_by_the_character() -> None:
    workload = workloads.get("shakespeare")
    given, wanted = shakespeare.windows(torch.randint(shakespeare.VOCABULARY, (5 * shakespeare.CONTEXT + 1,)))
    right, loss, count = training.judged(workload, Parrot(wanted), given, wanted)
    assert (right, count) == (5 * shakespeare.CONTEXT, 5 * shakespeare.CONTEXT)
    assert loss == pytest.approx(0.0, abs=1e-3)


class Parrot(torch.nn.Module):
    """It was told all answers before."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 100.0 * functional.one_hot(self.answers, shakespeare.VOCABULARY)


def test_unknown_workloads_and_models_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no workload is named 'fashion-mnits'; did you mean fashion-mnist"):
        workloads.get("fashion-mnits")
    with pytest.raises(UnknownName, match=r"no model of digits is named 'mlpp'; did you mean mlp"):
        workloads.get("digits").model("mlpp")


@dataclass
class Counts:
    bytes_sent: int = 0
    bytes_received: int = 0
    wire_sent: int = 0
    wire_received: int = 0
    waiting: float = 0.0
    codec_cpu: float = 0.0
    dense: int = 0
    coded: int = 0
    staleness: dict[int, int] = field(default_factory=dict)


class Alone:
    """An agent without others."""

    label, rank, size, steps = 0, 0, 1, 0
    network = Network()

    def synchronise(self) -> None:
        pass

    def prepare(self, model: Any, *optimizers: Any, strategy: Any = "allreduce") -> tuple[Any, ...]:
        return (model, *optimizers)

    def shard(self, dataset: Any, batch_size: int, epochs: int = 1, seed: int = 0, **meeting: Any) -> Shard:
        return Shard(dataset, batch_size, epochs=epochs, seed=seed, on_batch=self._count)

    def _count(self, share: float) -> None:
        self.steps += 1

    def mean(self, value: float, /) -> float:
        return value

    def digest(self) -> str:
        return "d"

    def report(self) -> Counts:
        return Counts()


def job(**changes: Any) -> Job:
    settings = {"workload": "digits", "model": "mlp", "strategy": "allreduce", "link": "auto", "folder": ""}
    return Job(**(settings | {"batch_size": 128, "seed": 0} | changes))


@pytest.mark.parametrize(("model", "reach"), [("mlp", 0.95), ("cnn", 0.97), ("lstm", 0.93)])
def test_digits_are_learned_with_the_usual_settings(model: str, reach: float) -> None:
    assert train(Alone(), workloads.get("digits"), model).accuracy > reach


def test_every_sample_is_trained_once_an_epoch_and_counted() -> None:
    told: list[Progress] = []
    outcome = train(Alone(), workloads.get("digits"), "mlp", epochs=3, progress=told.append)
    result = combine(job(), [outcome])
    assert result.proof.startswith("1,437 samples, each exactly once in each of 3 epochs; ledger ")
    assert result.samples == 3 * 1437 and result.steps == 36 and result.finished == [0]
    assert (told[0].step, told[-1].step, told[-1].accuracy) == (1, 36, outcome.accuracy)
    assert result.reached is None and result.digests == ["d"]


@pytest.mark.parametrize("tests", [True, False])
def test_without_tests_an_epochs_end_is_a_step_like_any_other(tests: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    agent = Alone()

    def evaluate(*_: object) -> tuple[float, float]:
        steps.append(agent.steps)
        return 0.5, 1.0

    monkeypatch.setattr(training, "evaluate", evaluate)
    outcome = train(agent, workloads.get("digits"), "mlp", epochs=3, tests=tests)
    assert steps == ([12, 24, 36] if tests else [36])
    assert outcome.accuracy == 0.5


def test_a_target_ends_training_as_soon_as_it_is_reached() -> None:
    outcome = train(Alone(), workloads.get("digits"), "mlp", target=0.8)
    assert outcome.accuracy >= 0.8 and outcome.steps < 60
    assert combine(job(target=0.8), [outcome]).reached is True
    assert combine(job(target=1.0), [outcome]).reached is False


def test_a_time_limit_ends_training_whatever_the_epochs() -> None:
    outcome = train(Alone(), workloads.get("digits"), "mlp", seconds=0.05)
    assert outcome.steps % 10 == 0 and outcome.seconds >= 0.05


def test_the_same_seed_gives_the_same_training() -> None:
    one, two, other = (train(Alone(), workloads.get("digits"), "mlp", epochs=2, seed=s) for s in (1, 1, 2))
    assert one.loss == two.loss != other.loss


def test_outcomes_are_left_whole_and_found_by_rank(tmp_path: Path) -> None:
    outcome = train(Alone(), workloads.get("digits"), "mlp", epochs=1)
    leave_outcome(tmp_path, outcome)
    assert list(outcomes(tmp_path, 3)) == [outcome]


def test_news_never_block_training_when_nobody_reads(tmp_path: Path, make_fifo: Callable[[Path], int]) -> None:
    progress = Progress(
        rank=0,
        agents=1,
        step=1,
        epoch=0,
        samples=1,
        seconds=1.0,
        loss=1.0,
        accuracy=None,
        bytes_sent=0,
        bytes_received=0,
        waiting=0,
    )
    without_reader = News(tmp_path)
    without_reader.tell(progress)
    make_fifo(tmp_path / NEWS)
    news = News(tmp_path)
    for _ in range(2000):
        news.tell(progress)
    news.close()


@pytest.fixture
def make_fifo() -> Iterator[Callable[[Path], int]]:
    opened: list[int] = []

    def make(path: Path) -> int:
        os.mkfifo(path)
        opened.append(os.open(path, os.O_RDWR))
        return opened[-1]

    yield make
    for pipe in opened:
        os.close(pipe)


def test_fashion_mnist_is_read_where_the_data_are_given() -> None:
    data = workloads.get("fashion-mnist").load(given("fashion-mnist"))
    assert data.train[0].shape == (60_000, 1, 28, 28) and data.test[1].bincount().tolist() == [1000] * 10


def test_shakespeare_is_cut_into_windows_and_its_last_tenth_is_kept_to_test_with() -> None:
    data = workloads.get("shakespeare").load(given("shakespeare"))
    (x, y), (test_x, test_y) = data.train, data.test
    assert x.shape == y.shape == (workloads.get("shakespeare").samples, shakespeare.CONTEXT)
    assert test_x.shape == test_y.shape == (1_742, shakespeare.CONTEXT)
    assert sorted(set(x.flatten().tolist())) == list(range(shakespeare.VOCABULARY))
    assert torch.equal(x[1:, 0], y[:-1, -1]) and x.dtype == torch.int64
    assert x[0, :6].tolist() == [18, 47, 56, 57, 58, 1]  # "First "


def test_a_gpt_learns_shakespeare() -> None:
    whole, data = workloads.get("shakespeare"), given("shakespeare")

    def some(folder: Path | None) -> Data:
        loaded = whole.load(folder)
        return Data((loaded.train[0][:960], loaded.train[1][:960]), (loaded.test[0][:100], loaded.test[1][:100]))

    outcome = train(Alone(), replace(whole, load=some), "gpt", epochs=1, batch_size=16, data=data)
    assert outcome.steps == 60 and outcome.loss < 2.8 and outcome.accuracy > 0.2


def given(name: str) -> Path:
    """The directory with the data of that name."""
    found = os.environ.get("STRETTO_DATA")
    if not found or not (Path(found) / name).is_dir():
        pytest.skip(f"$STRETTO_DATA names no directory with {name}")
    return Path(found)


def test_downloads_have_a_limit_of_patience_and_size(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *a, **k: asked.append(k) or io.BytesIO(bytes(99)))
    assert len(download._bytes_of("http://nowhere/x", 10)) == 11
    assert asked == [{"timeout": download.PATIENCE}]
