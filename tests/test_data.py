"""Shards: every sample exactly once an epoch, whoever dies or comes, and the same batches after an interruption."""

from __future__ import annotations

import gc
import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from random import Random
from typing import Any

import msgspec
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from stretto.data import Position, Shard, permutation
from stretto.errors import DataError, Disagreement, UsageError
from stretto.ledger import Ledger


class Squares(Dataset[tuple[int, float]]):
    """A map-style dataset that is not tensors."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[int, float]:
        return i, float(i * i)


class Numbers(Squares):
    def __getitem__(self, i: int) -> int:  # type: ignore[override]
        return i


class Stream(IterableDataset[int]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))


class Once(Stream):
    """Iterated a second time it gives nothing."""

    def __init__(self, n: int) -> None:
        self.rest = iter(range(n))

    def __iter__(self) -> Iterator[int]:
        return self.rest


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children()}


def batches_of_all(dataset: Any, batch_size: int, agents: int, **options: Any) -> list[list[Any]]:
    return [list(Shard(dataset, batch_size, rank=r, size=agents, **options)) for r in range(agents)]


@pytest.mark.parametrize("agents", [1, 3, 7])
def test_agents_together_see_each_sample_once_in_every_epoch(agents: int) -> None:
    for epoch in range(3):
        shards = [Shard(torch.arange(50), 4, epochs=3, seed=9, rank=r, size=agents) for r in range(agents)]
        seen = torch.cat([batch for shard in shards for batch in shard if shard.epoch == epoch])
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
    shard = Shard(torch.arange(16), 2, epochs=2, rank=1, size=3, on_batch=lambda share: events.append(f"{share:.3f}"))
    for batch in shard:
        events.append(f"{len(batch)} in {shard.epoch}")
    assert len(shard) == 4
    assert events == ["1.125", "3 in 0", "1.125", "3 in 0", "1.125", "3 in 1", "1.125", "3 in 1"]


def test_a_second_pass_repeats_the_first() -> None:
    shard = Shard(torch.arange(31), 4, epochs=2)
    assert [b.tolist() for b in shard] == [b.tolist() for b in shard]


# Deaths, newcomers, commits.


class Team:
    """Agents in lockstep: each has a shard whose dataset is sample numbers, and commits what the others commit."""

    def __init__(self, make: Callable[..., Shard], agents: int, epochs: int) -> None:
        self.make, self.epochs = make, epochs
        self.weights: dict[int, float] = {}
        self.uids, self._unused = list(range(100, 100 + agents)), itertools.count(100 + agents)
        self.members = [self._start(r, self.uids) for r in range(agents)]
        self.trained: Counter[tuple[int, int]] = Counter()
        self._drawn: list[list[tuple[int, list[int]]]] = []

    def draw(self) -> bool:
        """Everybody asks for a batch; false at the end of the pass, which everybody reaches together."""
        batches = [next(batches, None) for _, batches in self.members]
        assert len({batch is None for batch in batches}) == 1
        if batches[0] is None:
            return False
        used = [shard.epoch for shard, _ in self.members]
        weights = [self.weights[id(shard)] for shard, _ in self.members]
        assert len(set(used)) == 1 and sum(weights) == pytest.approx(len(weights))
        self._drawn.append([(e, b.tolist() if w else []) for e, b, w in zip(used, batches, weights, strict=True)])
        return True

    def commit(self, ranks: Collection[int] | None = None) -> None:
        for batches in self._drawn:
            for rank, (epoch, numbers) in enumerate(batches):
                if ranks is None or rank in ranks:
                    self.trained.update((epoch, n) for n in numbers)
        self._drawn.clear()
        for shard, _ in self.members:
            shard.committed(None if ranks is None else [self.uids[r] for r in ranks])
        assert len({shard.ledger for shard, _ in self.members}) == 1

    def change(self, dead: Collection[int] = (), new: int = 0, shares: Sequence[int] | None = None) -> None:
        """Some die, others come: those have each drawn a batch of their own before they were let in."""
        self.members = [m for rank, m in enumerate(self.members) if rank not in dead]
        self.uids = [uid for rank, uid in enumerate(self.uids) if rank not in dead]
        state = self.members[0][0].state()
        for uid in itertools.islice(self._unused, new):
            newcomer = self._start(0, [uid])
            next(newcomer[1])
            newcomer[0].adopt(state, join=True)
            self.members.append(newcomer)
            self.uids.append(uid)
        for rank, (shard, _) in enumerate(self.members):
            shard.enter(None, rank, len(self.members), shares, self.uids)

    def check(self, samples: int) -> None:
        assert set(self.trained.values()) == {1}
        assert sorted(self.trained) == [(e, n) for e in range(self.epochs) for n in range(samples)]
        assert all("each exactly once" in shard.proof() for shard, _ in self.members)
        assert len({shard.proof() for shard, _ in self.members}) == 1

    def _start(self, rank: int, uids: list[int]) -> tuple[Shard, Iterator[Any]]:
        def weigh(share: float) -> None:
            self.weights[id(shard)] = share

        shard = self.make(epochs=self.epochs, rank=rank, size=len(uids), members=uids, on_batch=weigh, fenced=True)
        return shard, iter(shard)


def live(team: Team, random: Random) -> None:
    """Train to the end: some batches are accumulated, some agents die in a round or after it, others come."""
    while True:
        more = all(team.draw() for _ in range(random.choice([1, 1, 1, 3])))
        size = len(team.members)
        dead = {r for r in range(size) if random.random() < 0.1} if more else set()
        dead -= {random.randrange(size)}
        team.commit(random.choice([None, [r for r in range(size) if r not in dead]]))
        if not more:
            return
        new = random.choice([0, 0, 0, 0, 1, 2])
        shares = [random.randint(1, 4) for _ in range(size - len(dead) + new)]
        if dead or new or random.random() < 0.1:
            team.change(dead, new, random.choice([None, shares]))


@given(st.integers(6, 90), st.integers(1, 6), st.integers(1, 9), st.randoms(use_true_random=False))
def test_every_sample_is_trained_exactly_once_an_epoch_whoever_dies_or_comes(
    samples: int, agents: int, batch_size: int, random: Random
) -> None:
    team = Team(partial(Shard, torch.arange(samples), batch_size), agents, 2)
    live(team, random)
    team.check(samples)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 7), st.randoms(use_true_random=False))
def test_every_sample_of_a_stream_is_trained_exactly_once_an_epoch_whoever_dies_or_comes(
    samples: int, agents: int, batch_size: int, random: Random
) -> None:
    team = Team(partial(Shard, Stream(samples), batch_size), agents, 2)
    live(team, random)
    team.check(samples)


def test_loader_workers_hand_out_what_was_dealt_and_go_on_when_members_change() -> None:
    strangers = children()
    team = Team(partial(Shard, Numbers(61), 3, workers=2), 3, 2)
    assert team.draw()
    before = children() - strangers
    for deaths, comes in [((), 0), ((1,), 0), ((), 0), ((), 1), ((0,), 0)]:
        team.commit([r for r in range(len(team.members)) if r not in deaths])
        team.change(deaths, comes)
        assert team.draw()
    gc.collect()  # the test's dead agents are held by their callbacks
    assert len(before) == 6 and len(before & children()) == 2, "two workers of the agent that was there all the time"
    team.commit()
    while team.draw():
        team.commit()
    team.check(61)
    assert children() == strangers, "workers end with the pass"


def test_parts_of_the_dead_are_dealt_to_the_others_before_the_next_epoch() -> None:
    team = Team(partial(Shard, torch.arange(12), 2), 3, 2)
    team.draw(), team.commit()
    team.draw(), team.commit([0, 2])
    team.change(dead=[1])
    team.draw()
    assert [len(batch) for _, batch in team._drawn[0]] == [0, 2], "one alone is what batch norm refuses"
    assert team.members[0][0].epoch == 0
    team.commit()
    assert team.members[0][0].position() == Position(epoch=1, steps=3, samples=12)


def test_members_do_not_change_under_a_batch_that_is_not_committed() -> None:
    shard = Shard(torch.arange(12), 2, size=2, fenced=True, shuffle=False)
    batches = iter(shard)
    assert next(batches).tolist() == [0, 1]
    shard.enter(None, 0, 1)
    assert next(batches).tolist() == [4, 5], "the second of two to be accumulated"
    shard.committed([0])
    assert shard.ledger.left == ((2, 4), (6, 12))
    assert next(batches).tolist() == [2, 3]


def test_a_newcomer_forgets_its_own_batches() -> None:
    shard, newcomer = (Shard(torch.arange(14), 2, fenced=True, shuffle=False) for _ in range(2))
    batches, own = iter(shard), iter(newcomer)
    assert next(batches).tolist() == next(own).tolist() == [0, 1]
    shard.committed()
    newcomer.enter(shard.ledger, 1, 2)
    shard.enter(None, 0, 2)
    assert (next(batches).tolist(), next(own).tolist()) == ([2, 3], [4, 5])
    shard.committed(), newcomer.committed()
    assert shard.ledger == newcomer.ledger and shard.ledger.trained == 6


def test_a_newcomer_adopts_what_is_pending_at_the_others() -> None:
    """The others have drawn a batch, somebody comes and somebody dies; the round ends, and only then all deal anew."""
    stay, dies, comes = 7, 8, 9
    shard = Shard(torch.arange(14), 2, size=2, members=(stay, dies), fenced=True, shuffle=False)
    newcomer = Shard(torch.arange(14), 2, members=(comes,), fenced=True, shuffle=False)
    batches, own = iter(shard), iter(newcomer)
    next(batches), next(own)
    newcomer.adopt(json.loads(json.dumps(shard.state())), join=True)
    for rank, s in enumerate((shard, newcomer)):
        s.enter(None, rank, 2, members=(stay, comes))
        s.committed([stay, comes])
    assert shard.ledger == newcomer.ledger and shard.ledger.left == ((2, 14),)
    assert (next(batches).tolist(), next(own).tolist()) == ([2, 3], [4, 5])


def test_a_damaged_state_is_refused() -> None:
    shard = Shard(torch.arange(12), 2)
    with pytest.raises(DataError, match=r"damaged.*take it from another agent"):
        shard.adopt({"ledger": 3})
    with pytest.raises(Disagreement, match="the same dataset and the same seed"):
        shard.adopt(Shard(torch.arange(12), 2, seed=1).state())


def test_faster_agents_get_more() -> None:
    weights: list[float] = []
    shards = [Shard(torch.arange(36), 4, rank=r, size=3, on_batch=weights.append) for r in range(3)]
    for rank, shard in enumerate(shards):
        shard.enter(None, rank, 3, (1, 2, 3))
    assert [len(next(iter(shard))) for shard in shards] == [2, 4, 6]
    assert weights == [0.5, 1.0, 1.5]


# Interruptions.


@pytest.mark.parametrize("after", [0, 1, 4, 6, 7, 12, 13])
@pytest.mark.parametrize("dataset", [torch.arange(53), TensorDataset(torch.arange(53)), "loader", "stream"], ids=str)
def test_a_resumed_shard_hands_out_the_batches_that_were_to_come(dataset: Any, after: int) -> None:
    data = {"loader": Numbers(53), "stream": Stream(53)}.get(dataset, dataset) if isinstance(dataset, str) else dataset
    make = partial(Shard, data, 4, epochs=2, rank=1, size=2, seed=8)
    whole = list(shard := make())
    first = Shard(data, 4, epochs=2, rank=1, size=2, seed=8, fenced=True)
    for _ in itertools.islice(first, after):
        first.committed()
    saved = msgspec.json.decode(msgspec.json.encode(first.ledger), type=Ledger)
    resumed = list(again := make(ledger=saved))
    assert len(resumed) == len(whole) - after
    assert str(resumed) == str(whole[after:])
    assert again.ledger == shard.ledger
    if dataset != "stream":
        assert len(make(ledger=saved)) == len(whole)


def test_a_run_resumed_by_more_agents_trains_the_same_global_batches() -> None:
    whole = list(Shard(torch.arange(53), 8, epochs=2))
    first = Shard(torch.arange(53), 8, epochs=2)
    for _ in itertools.islice(first, 3):
        pass
    parts = batches_of_all(torch.arange(53), 4, 2, epochs=2, ledger=first.ledger)
    assert [torch.cat(step).tolist() for step in zip(*parts, strict=True)] == [b.tolist() for b in whole[3:]]


def test_what_was_pending_when_a_state_was_saved_is_handed_out_again() -> None:
    shard, resumed = (Shard(torch.arange(12), 4, fenced=True) for _ in range(2))
    batches = iter(shard)
    next(batches), shard.committed()
    pending = next(batches)
    resumed.adopt(shard.state())
    assert next(iter(resumed)).tolist() == pending.tolist()


def test_a_ledger_of_other_data_is_refused() -> None:
    with pytest.raises(Disagreement, match=r"ledger is of .* \(13, 0, True\), and this shard of \(12, 0, True\)"):
        Shard(torch.arange(12), 2, ledger=Ledger.begin(13))


def test_what_nobody_committed_is_not_claimed() -> None:
    shard = Shard(torch.arange(12), 4, fenced=True)
    batches = iter(shard)
    next(batches)
    shard.committed()
    assert [len(b) for b in batches] == [4, 4]
    assert shard.ledger.trained == 4
    assert shard.proof().startswith("4 samples of 12 in epoch 0 so far, none twice; ledger ")
    assert shard.proof().endswith("; 2 batches were handed out and not trained")


def test_without_fences_a_batch_is_committed_when_it_is_handed_out() -> None:
    shard = Shard(torch.arange(12), 4, epochs=2)
    assert [shard.advanced for _ in shard] == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 24)]
    assert shard.ledger.trained == 24 and shard.proof().startswith("12 samples, each exactly once in each of 2 epochs")


def test_all_agents_see_the_same_samples_advance() -> None:
    shard, newcomer = (Shard(torch.arange(24), 4, fenced=True) for _ in range(2))
    batches, own = iter(shard), iter(newcomer)
    next(batches), shard.committed()
    assert shard.advanced == (0, 4)
    next(batches), next(own)
    assert shard.advanced == (4, 4)
    next(batches)
    newcomer.adopt(shard.state(), join=True)
    shard.committed(), newcomer.committed()
    assert shard.advanced == newcomer.advanced == (4, 12)


def test_a_stream_that_cannot_begin_anew_is_told() -> None:
    batches = iter(Shard(Once(5), 2, epochs=2))
    with pytest.raises(DataError, match="Once ended after 0 samples when it was read again in epoch 1"):
        list(batches)


def test_all_agents_see_the_end_of_a_stream_with_its_last_batch() -> None:
    seen = [[b.tolist() for b in Shard(Stream(7), 3, rank=r, size=2)] for r in range(2)]
    assert seen == [[[0, 1, 2], [6]], [[3, 4, 5], [6]]]
    weights: list[float] = []
    list(Shard(Stream(7), 3, rank=1, size=2, on_batch=weights.append))
    assert weights == [1.0, 0.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Shard(torch.arange(5), 4, size=8), "more agents than samples: 8 agents, 5 samples; start at most 5"),
        (lambda: Shard(torch.arange(0), 4), "the dataset is empty"),
        (lambda: Shard(Stream(3), 4, workers=2), "Stream is a stream, and each of 2 workers.*map-style"),
        (lambda: next(iter(Shard(Stream(0), 4))), "Stream is empty"),
        (lambda: Shard(iter([1]), 4), "is not a dataset"),
        (lambda: Shard((torch.arange(5), torch.arange(4)), 4), r"first dimension; got \[5, 4\]"),
        (lambda: Shard(torch.arange(5), 0), "at least 1"),
        (lambda: Shard(torch.arange(5), 1, epochs=0), "epochs and batch_size must be at least 1"),
        (lambda: Shard(torch.arange(5), 1, rank=2, size=2), "agent 2 of 2"),
        (lambda: Shard(torch.arange(5), 1).enter(None, 0, 2, (1,)), "1 shares and 2 members for 2 agents"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_words(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()
