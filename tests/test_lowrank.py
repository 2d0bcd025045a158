"""Low rank: what is special to it."""

from __future__ import annotations

import pytest
import torch
from contracts.coding import alone, bucket, exchange, filled, norm, same

from stretto.codecs import LowRank
from stretto.codecs.portable import multiply, orthonormalise
from stretto.core import Like, Named
from stretto.errors import UsageError
from stretto.text import parse


def matrix(rows: int, columns: int) -> Like:
    return Like((rows, columns), torch.float32)


def test_a_matrix_of_that_rank_comes_back_at_once() -> None:
    x = filled((40, 3), "normal", torch.float32, 0) @ filled((3, 50), "normal", torch.float32, 1)
    (out,) = alone(LowRank(3), x, matrix(40, 50)).decoded
    assert norm(out - x) <= 1e-5 * norm(x)


def test_round_by_round_the_basis_turns_to_the_best_there_is() -> None:
    x, codec = filled((40, 50), "normal", torch.float32, 0), LowRank(4)
    best = norm(torch.linalg.svdvals(x)[4:])
    state, lost = codec.init(matrix(40, 50)), []
    for _ in range(100):
        round_ = alone(codec, x, matrix(40, 50), state)
        state = round_.states[0]
        lost.append(norm(round_.decoded[0] - x))
    assert lost[0] > 1.03 * best
    assert lost[-1] < 1.001 * best


def test_vectors_and_small_matrices_travel_whole_and_it_says_so() -> None:
    like = bucket()
    assert LowRank(4).explain(like) == [
        "embed.weight travels as rank 4: 192 numbers instead of 40 x 8 = 320",
        "body.weight travels as rank 4: 224 numbers instead of 24 x 32 = 768",
        "body.bias travels whole: it is a vector of 24",
        "body.scale travels whole: it is a vector of 24",
        "conv.weight travels as rank 4: 140 numbers instead of 8 x 27 = 216",
    ]
    assert (
        LowRank(7).explain(like)[-1] == "conv.weight travels whole: 8 x 27 are no more than two factors of rank 7, 245"
    )
    x = filled(like.shape, "normal", torch.float32, 0)
    (out,) = alone(LowRank(4), x, like).decoded
    assert same(out[1088:1136], x[1088:1136])


def test_all_agents_begin_with_one_basis_and_end_with_what_the_mean_taught() -> None:
    likes = [bucket(seed=3, own=own) for own in range(3)]
    states = [LowRank(2).init(like) for like in likes]
    assert all(same(state, states[0]) for state in states)
    xs = [filled(like.shape, "normal", torch.float32, i) for i, like in enumerate(likes)]
    after = exchange(LowRank(2), xs, likes, states).states
    assert all(same(state, after[0]) for state in after)
    assert after[0].keys() == {"basis"}
    assert not same(after[0], states[0])


@pytest.mark.parametrize("kind", ["normal", "wide", "sparse"])
def test_what_is_made_orthonormal_has_the_same_bits_in_whatever_order_a_processor_adds(kind: str) -> None:
    rows = filled((5, 4001), kind, torch.float32, 0)
    order = torch.randperm(4001, generator=torch.Generator().manual_seed(1))
    shuffled = rows[:, order].clone()
    orthonormalise(rows)
    orthonormalise(shuffled)
    assert same(rows[:, order], shuffled)
    assert norm(rows.double() @ rows.double().T - torch.eye(5, dtype=torch.float64)) < 1e-6


def test_rows_that_depend_on_others_become_other_directions() -> None:
    first = filled((7,), "normal", torch.float32, 0)
    rows = torch.stack((first, 2 * first, torch.zeros(7), first * 1e-30, first * 1e30))
    orthonormalise(rows)
    assert norm(rows.double() @ rows.double().T - torch.eye(5, dtype=torch.float64)) < 1e-6
    assert norm(rows[0] - first / norm(first)) < 1e-6


def test_a_direction_is_found_that_is_faint_beside_another_in_however_many_rows() -> None:
    strong, faint = filled((2, 300_001), "normal", torch.float32, 0)
    rows = torch.stack((strong, strong + 1e-4 * faint))
    orthonormalise(rows)
    left = faint.double() - strong.double() * (faint.double() @ strong.double() / norm(strong) ** 2)
    assert float(rows[1].double() @ left / norm(left)) > 0.99


def test_factors_are_multiplied_as_exactly_as_float32_can() -> None:
    left, right = filled((3, 211), "normal", torch.float32, 0), filled((3, 997), "normal", torch.float32, 1)
    out = torch.empty(211, 997)
    multiply(left, right, 4.0, out)
    exact = 4 * left.double().T @ right.double()
    assert norm(out.double() - exact) <= 1e-7 * norm(exact)


@pytest.mark.parametrize(
    "text", ["lowrank(0)", "lowrank(-1)", "lowrank(1.5)", "lowrank(true)", "lowrank(4, nonfinite='no')"]
)
def test_what_is_no_rank_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="lowrank"):
        parse(text, "codec")


def test_a_rank_beyond_all_matrices_sends_everything_as_it_is() -> None:
    like = Like((6,), torch.float32, (Named("weight", (2, 3)),))
    x = filled((6,), "normal", torch.float32, 0)
    assert LowRank(1000).size(like) == x.nbytes
    assert same(alone(LowRank(1000), x, like).decoded[0], x)
