"""The recommender: its ratings are whole or refused at a line, and it learns what was planted, to the noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_workloads import Alone, job

from stretto import workloads
from stretto.cli import options
from stretto.errors import DataError
from stretto.server import Server
from stretto.strategies import allreduce
from stretto.workloads import factors, ratings, recommender
from stretto.workloads import train as training
from stretto.workloads.factors import Factors
from stretto.workloads.result import combine
from stretto.workloads.train import train

WHOLE = b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t377\t1\t878887116\n"


def test_rows_are_numbered_in_the_order_of_users_and_items_and_the_time_is_not_kept() -> None:
    found = ratings.parse(WHOLE, "u.data")
    assert found.pairs.tolist() == [[1, 0], [0, 1], [1, 2]] and found.pairs.dtype == torch.int64
    assert found.stars.tolist() == [3.0, 3.0, 1.0] and found.stars.dtype == torch.float32
    assert (found.users, found.items) == (2, 3)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_last_line_may_end_or_not(end: bytes) -> None:
    assert ratings.parse(WHOLE.replace(b"\n", end or b"\n").removesuffix(b"\n"), "x").users == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"196 242 3 881250949", r"line 2: expected user, item, rating and time between tabs, found '196 242"),
        (b"", r"line 2: expected user, item, rating and time between tabs, found ''"),
        (b"196\t242\t3", r"line 2: expected user, item, rating and time"),
        (b"x\t242\t3\t1", r"line 2: expected a whole number for the user, found 'x'"),
        (b"1\t-2\t3\t1", r"line 2: expected a whole number for the item, found '-2'"),
        (b"1\t2\tmany\t1", r"line 2: expected a number for the rating, found 'many'"),
        (b"1\t2\tnan\t1", r"line 2: expected a number for the rating, found 'nan'"),
        (b"1\t2\t1e99\t1", r"line 2: expected a number for the rating, found '1e99'"),
        (b"1\t2\t3\tnoon", r"line 2: expected a whole number for the time, found 'noon'"),
        (b"9" * 30 + b"\t2\t3\t1", r"line 2: expected a whole number for the user, found '9+'$"),
        (b"\xff" * 99, r"line 2: expected .* found '(\\\\xff){40}'…$"),
    ],
)
def test_a_damaged_line_is_named_with_what_was_expected_and_found(line: bytes, words: str) -> None:
    lines = WHOLE.split(b"\n")
    lines[1] = line
    with pytest.raises(DataError, match="u.data, " + words):
        ratings.parse(b"\n".join(lines), "u.data")


@given(st.binary(max_size=64) | st.text("0123456789\t\n.-e", max_size=64).map(str.encode))
def test_fuzz_ratings_are_parsed_or_refused(content: bytes) -> None:
    try:
        found = ratings.parse(content, "x")
    except DataError:
        return
    assert len(found.stars) == len(found.pairs) == len(content.splitlines())
    assert bool(found.stars.isfinite().all()) and int(found.pairs.min()) == 0
    assert (found.pairs.max(0).values + 1).tolist() == [found.users, found.items]


def test_a_file_without_ratings_or_too_large_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="x holds no ratings"):
        ratings.parse(b"", "x")
    with pytest.raises(DataError, match=r"too few to hold some out; give 10 or more"):
        recommender.split(ratings.parse(WHOLE, "x"))
    path = tmp_path / "u.data"
    path.write_bytes(WHOLE)
    with pytest.raises(DataError, match="holds more than 10 bytes"):
        ratings.read(path, most=10)
    with pytest.raises(DataError, match=r"cannot read .*none: No such file"):
        ratings.read(tmp_path / "none")


@pytest.mark.parametrize("inside", ["", "recommender", "ml-100k"])
def test_a_directory_holds_the_file_or_a_folder_of_it(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    path = tmp_path / inside / "u.data"
    path.write_bytes(WHOLE * 10)
    assert recommender.find(tmp_path) == recommender.find(path) == path
    data = recommender.load(tmp_path)
    assert (len(data.train[1]), len(data.test[1]), data.floor) == (27, 3, None)
    assert data.facts == {"users": 2, "items": 3, "mean": pytest.approx(float(data.train[1].mean()))}


def test_a_directory_that_is_named_must_hold_ratings_and_the_environments_need_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from stretto.cli.train import train as command

    found: list[str | None] = []
    monkeypatch.setattr("stretto.cli.train.watch", lambda console, job, *_: found.append(job.data) or asked())
    run = CliRunner(env={"STRETTO_DATA": str(tmp_path)}).invoke
    assert run(command, ["recommender"]).exit_code == 0
    assert isinstance(run(command, ["recommender", "--data", str(tmp_path)]).exception, DataError)
    (tmp_path / "recommender").mkdir()
    assert isinstance(run(command, ["recommender"]).exception, DataError)  # it was meant, and is not there
    (tmp_path / "recommender" / "u.data").write_bytes(WHOLE)
    assert run(command, ["recommender"]).exit_code == 0
    assert found == [None, str(tmp_path / "recommender" / "u.data")]


def asked() -> object:
    return combine(job(), [train(Alone(), workloads.get("digits"), "mlp", epochs=1)])


def test_outside_a_command_a_directory_is_one_that_was_named(tmp_path: Path) -> None:
    settings = {"strategy": "allreduce", "model": None, "link": "auto", "batch_size": None, "seed": 0}
    limits = {"epochs": None, "seconds": None, "target": None}
    with pytest.raises(DataError, match=r"has no u.data; name a directory that has it, or none to make ratings up"):
        options.job("recommender", 2, data=str(tmp_path), **settings, **limits)


def test_planted_ratings_are_always_the_same_different_pairs_around_the_truth() -> None:
    (made, truth), again = recommender.plant(40, 30, 2, 600, 0.5), recommender.plant(40, 30, 2, 600, 0.5)[0]
    assert torch.equal(made.pairs, again.pairs) and torch.equal(made.stars, again.stars)
    assert len({tuple(p) for p in made.pairs.tolist()}) == 600
    assert (made.pairs.max(0).values < torch.tensor([40, 30])).all()
    assert float((made.stars - truth).std()) == pytest.approx(0.5, rel=0.1)
    assert not torch.equal(made.stars, recommender.plant(40, 30, 2, 600, 0.5, seed=1)[0].stars)


def test_the_planted_truth_is_of_the_rank_that_is_said() -> None:
    made, truth = recommender.plant(12, 9, 2, 12 * 9, 0.0)
    whole = torch.empty(12, 9).index_put_((made.pairs[:, 0], made.pairs[:, 1]), truth)
    without = whole - whole.mean(0) - whole.mean(1, keepdim=True) + whole.mean()  # the biases' part is taken out
    assert torch.linalg.matrix_rank(without, atol=1e-4) == 2 and torch.equal(made.stars, truth)


def test_the_floor_is_what_the_truth_itself_misses_on_the_ratings_held_out() -> None:
    made, truth = recommender.plant(40, 30, 2, 600, 0.5)
    data = recommender.split(made, truth)
    assert (len(data.train[1]), len(data.test[1])) == (540, 60)
    known = {tuple(p): t for p, t in zip(made.pairs.tolist(), truth.tolist(), strict=True)}
    said = torch.tensor([known[tuple(p)] for p in data.test[0].tolist()])
    assert data.floor == pytest.approx(float((said - data.test[1]).square().mean().sqrt()))


def test_a_rating_is_the_mean_two_biases_and_a_product() -> None:
    model = Factors(users=3, items=2, rank=2, mean=3.5)
    with torch.no_grad():
        model.users.weight.copy_(torch.tensor([[0.0, 0, 0], [0, 0, 0], [0.25, 1, 2]]))
        model.items.weight.copy_(torch.tensor([[-0.5, 3, 4], [0, 0, 0]]))
    assert model(torch.tensor([[2, 0], [0, 1]])).tolist() == [3.5 + 0.25 - 0.5 + 3 + 8, 3.5]


@pytest.mark.parametrize("sparse", [False, True])
def test_the_penalty_is_in_the_gradients_of_rows_that_a_batch_touches(sparse: bool) -> None:
    torch.manual_seed(0)
    model = Factors(users=5, items=4, rank=2, sparse=sparse)
    pairs, stars = torch.tensor([[1, 0], [1, 3], [4, 0]]), torch.tensor([1.0, 2.0, 3.0])
    loss = torch.nn.functional.mse_loss(model(pairs), stars)
    loss.backward()
    got = [t.weight.grad.to_dense() if sparse else t.weight.grad for t in (model.users, model.items)]
    rows = [t.weight.detach().clone().requires_grad_() for t in (model.users, model.items)]
    users, items = rows[0][pairs[:, 0]], rows[1][pairs[:, 1]]
    said = users[:, 0] + items[:, 0] + (users[:, 1:] * items[:, 1:]).sum(1)
    charged = (said - stars).square() + factors.PENALTY * (users.square().sum(1) + items.square().sum(1))
    charged.mean().backward()
    for mine, theirs in zip(got, rows, strict=True):
        torch.testing.assert_close(mine, theirs.grad)


def test_training_reaches_the_planted_floor_within_two_percent_and_says_so() -> None:
    outcome = train(Alone(), workloads.get("recommender"), "factors")
    result = combine(job(workload="recommender"), [outcome])
    assert result.floor is not None and result.rmse is not None
    assert result.rmse == pytest.approx(result.loss**0.5) and result.ratio == result.rmse / result.floor
    assert 1.0 < result.ratio < 1.02
    assert result.proof.startswith("360,000 samples, each exactly once in each of 6 epochs")


def test_sparse_gradients_train_what_dense_ones_do() -> None:
    """Adagrad without penalties of its own moves no row that a batch does not touch, so that the two are the same."""
    data = recommender.split(*recommender.plant(50, 40, 3, 1500))
    trained = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = workloads.get("recommender").model("factors", **data.facts, sparse=sparse)
        optimizer = workloads.get("recommender").optimizer(model)
        for pairs, stars in zip(data.train[0].split(50), data.train[1].split(50), strict=True):
            torch.nn.functional.mse_loss(model(pairs), stars).backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.append(model.state_dict())
    for name, dense in trained[0].items():
        torch.testing.assert_close(trained[1][name], dense)


def test_tables_are_sparse_where_a_server_takes_rows_and_nowhere_else() -> None:
    served = replace(allreduce(), exchange=Server())
    assert training._rows(workloads.get("recommender"), served) == {"sparse": True}
    assert training._rows(workloads.get("recommender"), "allreduce") == {}
    assert training._rows(workloads.get("digits"), served) == {}


def test_a_right_answer_is_at_most_half_a_star_off() -> None:
    assert recommender.close(torch.tensor([3.5, 3.4, 5.0]), torch.tensor([4.0, 4.0, 5.0])).tolist() == [
        True,
        False,
        True,
    ]


def test_without_a_floor_no_ratio_is_said_and_without_squares_no_root() -> None:
    digits = combine(job(), [train(Alone(), workloads.get("digits"), "mlp", epochs=1)])
    assert digits.rmse is digits.floor is digits.ratio is None
