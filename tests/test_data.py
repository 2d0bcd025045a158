"""Sharding: every sample exactly once an epoch, and weights that make the mean exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from stretto.data import Shard, permutation, plan
from stretto.errors import UsageError

sizes = st.tuples(st.integers(1, 400), st.integers(1, 40), st.integers(1, 70))


class Squares(Dataset[tuple[int, float]]):
    """A map-style dataset that is not tensors."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[int, float]:
        return i, float(i * i)


def batches_of_all(dataset: Any, batch_size: int, agents: int, **options: Any) -> list[list[Any]]:
    return [list(Shard(dataset, batch_size, rank=r, size=agents, **options)) for r in range(agents)]


@given(sizes)
def test_every_sample_is_dealt_exactly_once_an_epoch(sizes: tuple[int, int, int]) -> None:
    samples, agents, batch_size = sizes
    assume(samples >= agents)
    p = plan(samples, agents, batch_size)
    dealt = [i for s in range(p.steps) for r in range(agents) for i in p.part(s, r)]
    assert dealt == list(range(samples))


@given(sizes)
def test_parts_are_never_empty_differ_by_one_and_fit_the_batch(sizes: tuple[int, int, int]) -> None:
    samples, agents, batch_size = sizes
    assume(samples >= agents)
    p = plan(samples, agents, batch_size)
    for step in range(p.steps):
        lengths = [len(p.part(step, r)) for r in range(agents)]
        assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1
        assert max(lengths) <= (batch_size if batch_size > 1 or samples % agents == 0 else 2)


@given(st.integers(1, 400), st.integers(1, 6), st.integers(2, 12), st.integers(1, 6))
def test_global_batches_depend_on_the_global_batch_size_alone(samples: int, a: int, k: int, b: int) -> None:
    few, many = a, a * b
    assume(samples >= many)
    p, q = plan(samples, few, k * b), plan(samples, many, k)
    assert [p.batch(s) for s in range(p.steps)] == [q.batch(s) for s in range(q.steps)]


@given(sizes)
def test_the_mean_over_agents_of_share_times_gradient_is_the_mean_over_samples(sizes: tuple[int, int, int]) -> None:
    samples, agents, batch_size = sizes
    assume(samples >= agents)
    p = plan(samples, agents, batch_size)
    gradients = torch.randn(samples, dtype=torch.float64)
    for step in (0, p.steps // 2, p.steps - 1):
        parts = [p.part(step, r) for r in range(agents)]
        means = [gradients[i.start : i.stop].mean() * p.share(step, r) for r, i in enumerate(parts)]
        whole = p.batch(step)
        assert torch.allclose(torch.stack(means).mean(), gradients[whole.start : whole.stop].mean(), atol=1e-12)
        assert sum(p.share(step, r) for r in range(agents)) == pytest.approx(agents, abs=1e-9)


@pytest.mark.parametrize("agents", [1, 3, 7])
def test_agents_together_see_each_sample_once_in_every_epoch(agents: int) -> None:
    for epoch in range(3):
        shards = [Shard(torch.arange(50), 4, epochs=3, seed=9, rank=r, size=agents) for r in range(agents)]
        seen = torch.cat([i for shard in shards for i in shard.indices(epoch)])
        assert sorted(seen.tolist()) == list(range(50))


def test_agents_of_one_step_hold_one_global_batch_of_the_shared_permutation() -> None:
    whole = list(Shard(torch.arange(101), 12, seed=5))
    shared = batches_of_all(torch.arange(101), 3, 4, seed=5)
    assert [torch.cat(parts).tolist() for parts in zip(*shared, strict=True)] == [b.tolist() for b in whole]


def test_permutations_differ_by_epoch_and_seed_and_repeat_themselves() -> None:
    orders = [permutation(100, seed, epoch).tolist() for seed in range(3) for epoch in range(3)]
    assert len({tuple(o) for o in orders}) == 9
    assert permutation(100, 2, 2).tolist() == orders[-1]
    assert permutation(100, -1, 10**12).sort().values.tolist() == list(range(100))


def test_sharding_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    list(Shard(Squares(20), 4, epochs=2))
    list(Shard(torch.arange(20), 4, epochs=2))
    assert torch.equal(before, torch.get_rng_state())


def test_without_shuffle_the_order_is_the_datasets() -> None:
    assert torch.cat(list(Shard(torch.arange(10), 3, shuffle=False))).tolist() == list(range(10))


def test_tensors_tuples_and_tensor_datasets_give_the_same_batches_as_a_loader() -> None:
    n = torch.arange(23)
    values = (n, n.double() ** 2)
    loaded = list(Shard(Squares(23), 4, epochs=2, seed=3))
    for dataset in (values, TensorDataset(*values)):
        quick = list(Shard(dataset, 4, epochs=2, seed=3))
        assert all(torch.equal(a, b) for q, x in zip(quick, loaded, strict=True) for a, b in zip(q, x, strict=True))
    alone = list(Shard(n, 4, epochs=2, seed=3))
    assert all(isinstance(a, Tensor) and torch.equal(a, x[0]) for a, x in zip(alone, loaded, strict=True))


def test_loader_workers_change_nothing_but_the_process() -> None:
    plain = list(Shard(Squares(17), 4, epochs=2, seed=1))
    worked = list(Shard(Squares(17), 4, epochs=2, seed=1, workers=2))
    assert all(torch.equal(a, b) for p, w in zip(plain, worked, strict=True) for a, b in zip(p, w, strict=True))


def test_shares_are_announced_before_their_batch_and_the_epoch_is_current() -> None:
    events: list[str] = []
    shard = Shard(torch.arange(10), 2, epochs=2, rank=1, size=3, on_batch=lambda share: events.append(f"{share:.3f}"))
    for batch in shard:
        events.append(f"{len(batch)} in {shard.epoch}")
    assert len(shard) == 4
    assert events == ["1.200", "2 in 0", "1.200", "2 in 0", "1.200", "2 in 1", "1.200", "2 in 1"]


def test_a_second_pass_repeats_the_first() -> None:
    shard = Shard(torch.arange(31), 4, epochs=2)
    assert [b.tolist() for b in shard] == [b.tolist() for b in shard]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Shard(torch.arange(5), 4, size=8), "more agents than samples: 8 agents, 5 samples; start at most 5"),
        (lambda: Shard(torch.arange(0), 4), "the dataset is empty"),
        (lambda: Shard(Stream(), 4), "Stream is an IterableDataset.*map-style"),
        (lambda: Shard(iter([1]), 4), "is not a dataset"),
        (lambda: Shard((torch.arange(5), torch.arange(4)), 4), r"first dimension; got \[5, 4\]"),
        (lambda: Shard(torch.arange(5), 0), "at least 1"),
        (lambda: Shard(torch.arange(5), 1, epochs=0), "epochs must be at least 1"),
        (lambda: Shard(torch.arange(5), 1, rank=2, size=2), "agent 2 of 2"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_words(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()
