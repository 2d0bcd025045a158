"""Error feedback: what a codec loses is sent later, so that training ends where it would have ended without."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from contracts.coding import alone, bucket, copied, exchange, filled, norm, same
from torch import Tensor

from stretto.codecs import Feedback, Identity, PerLayer, Sign, TopK
from stretto.core import Codec, Like, Named
from stretto.errors import NonFinite, UsageError
from stretto.text import parse

AGENTS, ROWS, COLUMNS = 4, 6, 5
LIKE = Like((ROWS * COLUMNS,), torch.float32, (Named("weight", (ROWS, COLUMNS)),))
STEP = 0.05


class LeastSquares:
    """A convex problem, another one at each agent: where their mean is best, no agent's own gradient is zero."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        n = LIKE.numel
        mixing = torch.randn(AGENTS, n, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
        self.curves = mixing @ mixing.mT / 2 + torch.eye(n, dtype=torch.float64)
        self.targets = torch.randn(AGENTS, n, generator=generator, dtype=torch.float64)
        pull = (self.curves @ self.targets[:, :, None]).sum(0)[:, 0]
        self.best = torch.linalg.solve(self.curves.sum(0), pull)

    def gradients(self, at: Tensor) -> list[Tensor]:
        return [(c @ (at - t)).float() for c, t in zip(self.curves, self.targets, strict=True)]

    def distance(self, at: Tensor) -> float:
        return norm(at - self.best) / norm(self.best)


def descend(codec: Codec, steps: int) -> tuple[float, float]:
    """How far from the best, by its own length, descent by constant steps ends; and the mean of its later half.

    Agents agree as they do along a ring: sums on their way, or an owner that encodes the mean of what all sent.
    """
    likes = [replace(LIKE, own=rank) for rank in range(AGENTS)]
    problem, states, owner = LeastSquares(), [codec.init(like) for like in likes], codec.init(LIKE)
    at, path = torch.zeros_like(problem.best), []
    for _ in range(steps):
        round_ = exchange(codec, problem.gradients(at), likes, states)
        states, mean = round_.states, torch.stack(round_.decoded).mean(0)
        if not codec.summable:
            again = alone(codec, mean, LIKE, owner)
            (mean,), (owner,) = again.decoded, again.states
        at = at - STEP * mean.double()
        path.append(at)
    return problem.distance(at), problem.distance(torch.stack(path[steps // 2 :]).mean(0))


@pytest.mark.parametrize("text", ["topk(0.1)", "sign", "int2", "topk(0.2)+int4", "dct_topk(0.1)", "threshold(0.3)"])
def test_with_feedback_descent_reaches_the_best_and_without_it_never_does(text: str) -> None:
    """By constant steps an agent circles around the best, as wide as what it holds back; the circle's middle is it."""
    _, without = descend(parse(text, "codec"), 500)
    _, with_ = descend(parse(f"feedback({text})", "codec"), 1600)
    assert without > 0.3
    assert with_ < 2e-3


@pytest.mark.parametrize("text", ["lowrank(1)", "randomk(0.2, scaled=false)"])
def test_with_feedback_around_what_is_added_on_its_way_the_last_step_is_there(text: str) -> None:
    last, _ = descend(parse(f"feedback({text})", "codec"), 1000)
    assert last < 1e-5


@pytest.mark.parametrize("text", ["topk(0.02)", "sign", "int2", "int8", "randomk(0.1, scaled=false)", "lowrank(1)"])
def test_what_was_given_was_sent_or_is_kept(text: str) -> None:
    codec = Feedback(parse(text, "codec"))
    likes = [bucket(seed=1, own=own) for own in range(3)]
    states = [codec.init(like) for like in likes]
    given, sent = (torch.zeros(likes[0].numel, dtype=torch.float64) for _ in range(2))
    for step in range(5):
        xs = [filled(likes[0].shape, "normal", torch.float32, 10 * step + i) for i in range(3)]
        round_ = exchange(codec, xs, likes, states)
        states = round_.states
        given += torch.stack(xs).double().mean(0)
        sent += torch.stack(round_.decoded).double().mean(0)
    kept = torch.stack([codec.kept(like, state) for like, state in zip(likes, states, strict=True)]).double().mean(0)
    assert norm(kept) > 1e-3 * norm(given)
    assert norm(given - sent - kept) <= 1e-5 * norm(given)


def test_a_decay_forgets_that_part_of_what_was_held_back() -> None:
    codec, like = Feedback(TopK(0.25), decay=0.5), Like((4,), torch.float32)
    first = alone(codec, torch.tensor([4.0, 2.0, 0.0, 0.0]), like)
    assert codec.kept(like, first.states[0]).tolist() == [0, 1, 0, 0]
    second = alone(codec, torch.zeros(4), like, first.states[0])
    assert second.decoded[0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("text", ["topk(0.02)", "topk(0.1)+int2", "sign", "dct_topk(0.1)", "lowrank(1)"])
def test_of_what_was_not_sent_a_decay_keeps_its_part_each_round(text: str) -> None:
    """``kept`` is what the next round would add, so the decay is in it: it may be handed over once, as it is."""
    codec, like = Feedback(parse(text, "codec"), decay=0.8), bucket(seed=1)
    state, owed = codec.init(like), torch.zeros(like.numel, dtype=torch.float64)
    for step in range(5):
        x = filled(like.shape, "normal", torch.float32, step)
        round_ = alone(codec, x, like, state)
        state = round_.states[0]
        owed = 0.8 * (owed + x.double() - round_.decoded[0].double())
        assert norm(codec.kept(like, state) - owed) <= 1e-5 * norm(owed)


@pytest.mark.parametrize("text", ["topk(0.02)", "topk(0.1)+int2", "sign", "dct_topk(0.1)"])
def test_a_decayed_residual_that_is_handed_over_changes_nothing_of_what_is_sent(text: str) -> None:
    """An epoch begins with what was kept in the next tensor, and none in the codec."""
    codec, like = Feedback(parse(text, "codec"), decay=0.95), bucket(seed=1)
    first, then = (filled(like.shape, "normal", torch.float32, step) for step in range(2))
    state = alone(codec, first, like).states[0]
    stayed = alone(codec, then, like, state)
    moved = alone(codec, then + codec.kept(like, state), like)
    torch.testing.assert_close(moved.decoded[0], stayed.decoded[0])
    torch.testing.assert_close(codec.kept(like, moved.states[0]), codec.kept(like, stayed.states[0]))


def test_a_decay_makes_a_momentum_of_what_is_held_back() -> None:
    """What is sent is taken out of it, and is its largest elements as they are: so it is in DeMo and SparseLoCo."""
    codec, like = Feedback(TopK(0.05), decay=0.9), Like((100,), torch.float32)
    state, momentum, x = codec.init(like), torch.zeros(100), filled((100,), "normal", torch.float32, 0)
    for _ in range(6):
        momentum = 0.9 * momentum + x
        round_ = alone(codec, x, like, state)
        state, sent = round_.states[0], round_.decoded[0]
        torch.testing.assert_close(sent, momentum * (sent != 0))
        assert int((sent != 0).sum()) == 5
        momentum = momentum - sent


def test_what_is_not_finite_may_pass_and_leaves_the_residual_as_it_was() -> None:
    codec, like = Feedback(TopK(0.1, nonfinite="pass")), bucket()
    before = alone(codec, filled(like.shape, "normal", torch.float32, 0), like).states[0]
    x = filled(like.shape, "normal", torch.float32, 1)
    x[7] = math.inf
    bad = alone(codec, x, like, before)
    assert bad.decoded[0][7] == math.inf
    assert same(bad.states[0]["residual"], before["residual"])


def test_what_raises_leaves_the_state_as_it_was() -> None:
    codec, like = Feedback(TopK(0.1)), bucket()
    before = alone(codec, filled(like.shape, "normal", torch.float32, 0), like).states[0]
    kept = copied(before)
    with pytest.raises(NonFinite, match="body"):
        codec.encode(torch.full(like.shape, math.nan).index_fill_(0, torch.arange(320), 0.0), like, before)
    assert same(before, kept)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("feedback(ternary)", "it is unbiased and needs no feedback"),
        ("feedback(randomk(0.1))", "randomk"),
        ("feedback(int4(stochastic=true))", "int4"),
        ("feedback(identity)", "loses nothing"),
        ("feedback(feedback(sign))", "use it alone"),
        ("feedback(sign, decay=0)", "above 0 and at most 1"),
        ("feedback(sign, decay=1.5)", "above 0 and at most 1"),
        ("feedback(3)", "3 is not a codec"),
    ],
)
def test_what_feedback_cannot_help_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(text, "codec")


def test_around_a_choice_by_layer_it_is_around_each_that_loses() -> None:
    like = bucket()
    groups = Feedback(PerLayer({"biases": "identity"}, rest="sign"), decay=0.9).groups(like)
    assert {codec for codec, _ in groups} == {Identity(), Feedback(Sign(), decay=0.9)}
