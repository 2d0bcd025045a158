"""Leases: every sample committed exactly once an epoch, whoever asks, commits, dies and comes, in whatever order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from functools import partial
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import Tensor

from stretto.data import Shard
from stretto.errors import DataError, Disagreement, UsageError
from stretto.ledger import Ledger, count
from stretto.server.leases import Lease, Leases
from stretto.state import packed, unpack

randoms = st.integers(0, 1 << 32).map(Random)


Started = tuple[Shard, Iterator[Tensor]]


class Team:
    """Agents that ask for leases, train them and commit them as chance has it; they come and go."""

    def __init__(self, leases: Leases, agents: int, random: Random) -> None:
        self.leases, self.random = leases, random
        self.trained: Counter[tuple[int, int]] = Counter()
        self._unused = itertools.count(100)
        self.has: dict[int, list[Lease]] = {}
        self.change(new=agents)

    def change(self, gone: int | None = None, new: int = 0) -> None:
        if gone is not None:
            del self.has[gone]
        self.has.update((uid, []) for uid in itertools.islice(self._unused, new))
        self.leases.enter(tuple(self.has))

    def ask(self, uid: int) -> None:
        found = self.leases.lease(uid, batch_size=self.random.randint(1, 9))
        if found is None:
            assert self.leases.over or any(self.has.values()), "who waits, waits for somebody"
            return
        heard = self.has[uid][-1].number if self.has[uid] else found.number - 1
        assert self.leases.held(uid, heard) == found and self.leases.held(uid, found.number) is None
        self.has[uid].append(found)

    def commit(self, uid: int) -> None:
        lease = self.has[uid].pop(0)
        assert self.leases.commit(uid, lease.number)
        assert not self.leases.commit(uid, lease.number), "a repeat is none"
        self.trained.update((lease.epoch, n) for start, stop in lease.ranges for n in range(start, stop))

    def live(self) -> None:
        while not self.leases.over:
            uid, chance = self.random.choice(list(self.has)), self.random.random()
            if chance < 0.05 and len(self.has) > 1:
                self.change(gone=uid)
            elif chance < 0.1 and len(self.has) < 9:
                self.change(new=1)
            elif chance < 0.15:
                state = self.leases.state()
                self.leases = Leases.of(unpack(packed(state)))
                assert self.leases.state() == state
            elif chance < 0.2 and self.has[uid]:
                self.leases.give_back(uid, self.has[uid].pop().number)
            elif self.has[uid] and (chance < 0.6 or len(self.has[uid]) > 3):
                self.commit(uid)
            else:
                self.ask(uid)


@given(st.integers(1, 90), st.integers(1, 6), st.integers(1, 3), randoms)
def test_every_sample_is_committed_exactly_once_an_epoch_and_nobody_waits_for_ever(
    samples: int, agents: int, epochs: int, random: Random
) -> None:
    team = Team(Leases(Ledger.begin(samples), 4, epochs), agents, random)
    team.live()
    assert team.trained == {(epoch, n): 1 for epoch in range(epochs) for n in range(samples)}
    assert "each exactly once" in team.leases.ledger.proof()
    assert (team.leases.ledger.epoch, team.leases.ledger.trained) == (epochs, epochs * samples)


@given(st.integers(2, 200), st.integers(2, 40))
def test_leases_of_an_epoch_are_alike_in_size_and_their_shares_are_in_proportion(samples: int, size: int) -> None:
    leases = Leases(Ledger.begin(samples), size, 1)
    leases.enter((7,))
    dealt = list(iter(lambda: leases.lease(7), None))
    sizes = [count(lease.read) for lease in dealt]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 2 and (max(sizes) <= size or size < 4)
    assert sum(lease.share for lease in dealt) == pytest.approx(len(dealt))
    assert [lease.share * sizes[0] for lease in dealt] == pytest.approx([dealt[0].share * size for size in sizes])
    assert [lease.last for lease in dealt] == [False] * (len(dealt) - 1) + [True]


def test_a_quick_agent_goes_on_into_the_next_epoch_while_a_slow_one_has_the_last_of_this() -> None:
    leases = Leases(Ledger.begin(20), 5, 2)
    leases.enter((1, 2))
    slow = leases.lease(1)
    assert slow is not None and slow.ranges == ((0, 5),)
    epochs = []
    for _ in range(7):
        quick = leases.lease(2)
        assert quick is not None and leases.commit(2, quick.number)
        epochs.append(quick.epoch)
    assert (epochs[-1], leases.ledger.epoch, leases.over) == (1, 0, False)
    assert leases.lease(2) is None, "it may come back"
    leases.commit(1, slow.number)
    assert leases.over and leases.lease(1) is leases.lease(2) is None


def test_the_leases_of_who_is_gone_are_dealt_again_and_it_cannot_commit_them_any_more() -> None:
    leases = Leases(Ledger.begin(8), 4, 1)
    leases.enter((1, 2))
    gone, kept = leases.lease(1), leases.lease(2)
    assert gone is not None and kept is not None and leases.lease(2) is None
    assert leases.holders == {1, 2} and leases.out_to(1) == [gone.number]
    leases.enter((2, 3))
    assert leases.holders == {2} and leases.out_to(1) == []
    assert not leases.commit(1, gone.number)
    with pytest.raises(Disagreement, match="agent 1 is not one of"):
        leases.lease(1)
    again = leases.lease(3)
    assert again is not None and again.ranges == gone.ranges and again.number not in (gone.number, kept.number)
    assert not leases.commit(3, gone.number) and not leases.commit(3, kept.number) and not leases.ledger.trained
    assert leases.commit(2, kept.number) and leases.commit(3, again.number) and leases.over


def test_what_is_given_back_goes_to_who_asks_next() -> None:
    leases = Leases(Ledger.begin(8), 4, 1)
    leases.enter((1, 2))
    first, second = leases.lease(1), leases.lease(1)
    assert first is not None and second is not None and leases.lease(2) is None
    leases.give_back(2, first.number)
    assert leases.lease(2) is None, "it is not its own"
    leases.give_back(1, first.number)
    again = leases.lease(2)
    assert again is not None and again.ranges == first.ranges and not leases.commit(1, first.number)


# Static: what Shard deals.


def shards(samples: int, size: int, uids: list[int], epochs: int, weights: dict[int, float]) -> list[Started]:
    def start(rank: int) -> Started:
        shard = Shard(
            torch.arange(samples),
            size,
            epochs=epochs,
            shuffle=False,
            rank=rank,
            size=len(uids),
            members=uids,
            fenced=True,
            on_batch=partial(weights.__setitem__, uids[rank]),
        )
        return shard, iter(shard)

    return [start(rank) for rank in range(len(uids))]


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 90), st.integers(1, 3), randoms)
def test_static_leases_are_what_shards_are_dealt_also_after_deaths(
    agents: int, size: int, more: int, epochs: int, random: Random
) -> None:
    samples, uids, weights = agents + more, [10 * (r + 1) for r in range(agents)], dict[int, float]()
    theirs = dict(zip(uids, shards(samples, size, uids, epochs, weights), strict=True))
    leases = Leases(Ledger.begin(samples, 0, False), size, epochs, static=True)
    leases.enter(tuple(uids))
    for clock in itertools.count(1):
        batches = [next((batch.tolist() for batch in drawn), None) for _, drawn in theirs.values()]
        found = [leases.lease(uid, clock) for uid in uids]
        if None in batches:
            assert not any(batches) and set(found) == {None} and leases.over
            break
        for uid, batch, lease in zip(uids, batches, found, strict=True):
            assert lease is not None and lease == leases.lease(uid, clock)
            assert [n for start, stop in lease.read for n in range(start, stop)] == batch
            assert (lease.share, lease.epoch, lease.last) == (
                weights[uid],
                theirs[uid][0].epoch,
                theirs[uid][0].ends,
            )
        dead = [uid for uid in uids if random.random() < 0.1 and len(uids) > 1][: len(uids) - 1]
        uids = [uid for uid in uids if uid not in dead]
        if dead:
            leases.enter(tuple(uids))
        for rank, uid in enumerate(uids):
            lease = found[list(theirs).index(uid)]
            assert lease is not None and leases.commit(uid, lease.number)
            theirs[uid][0].committed(uids)
            if dead:
                theirs[uid][0].enter(None, rank, len(uids), members=uids)
        theirs = {uid: theirs[uid] for uid in uids}
        assert {shard.ledger for shard, _ in theirs.values()} == {leases.ledger}
    assert leases.over and "each exactly once" in leases.ledger.proof()


class Step:
    """Static leases of some agents, all of one step."""

    def __init__(self, leases: Leases, uids: tuple[int, ...], clock: int) -> None:
        found = {uid: leases.lease(uid, clock) for uid in uids}
        self.leases, self.parts = leases, {uid: lease for uid, lease in found.items() if lease is not None}

    @property
    def sizes(self) -> list[float]:
        return [count(lease.read) if lease.share else 0 for lease in self.parts.values()]

    def commit(self, *uids: int) -> bool:
        return all([self.leases.commit(uid, self.parts[uid].number) for uid in uids])


def alike(one: Lease | None, other: Lease | None) -> bool:
    """But for what is known to come after them."""
    known, told = (lease and replace(lease, last=False) for lease in (one, other))
    return known == told


def static(samples: int, *members: int) -> Leases:
    leases = Leases(Ledger.begin(samples, shuffle=False), 2, 1, static=True)
    leases.enter(members)
    return leases


def test_who_comes_when_a_static_step_is_out_weighs_nothing_in_it() -> None:
    leases = static(12, 1, 2)
    first = Step(leases, (1, 2), 1)
    assert leases.begun(1) and not leases.begun(2)
    leases.enter((1, 2, 3))
    guest = leases.lease(3, 1)
    assert guest is not None and (guest.share, guest.number, count(guest.read)) == (0.0, 0, 2)
    assert not leases.commit(3, guest.number) and first.commit(1, 2)
    assert Step(leases, (1, 2, 3), 2).sizes == [2, 3, 3]
    with pytest.raises(Disagreement, match="step 1 is asked for, and is over"):
        leases.lease(3, 1)


def test_a_static_step_that_was_asked_for_ahead_stays_with_who_has_it_when_another_dies() -> None:
    leases = static(12, 1, 2, 3)
    first, second = Step(leases, (1, 2, 3), 1), Step(leases, (1,), 5)
    leases.enter((1, 3))
    assert alike(leases.lease(1, 5), second.parts[1]), "steps of the trainer's that were no batches lie between"
    assert Step(leases, (3,), 5).sizes == [2]
    assert first.commit(1, 3) and leases.ledger.trained == 4
    assert Step(leases, (1, 3), 6).sizes == [2, 2] and leases.lease(1, 7) is None


@given(randoms)
def test_every_sample_is_committed_once_by_static_steps_asked_for_ahead_whoever_dies_or_comes(random: Random) -> None:
    leases, uids, unused = static(random.randint(1, 60), 1, 2, 3), [1, 2, 3], itertools.count(4)
    trained: Counter[int] = Counter()
    out: dict[int, dict[int, Lease]] = {}

    def ask(uid: int, clock: int) -> None:
        lease = leases.lease(uid, clock)
        had = out.setdefault(clock, {}).get(uid)
        assert had is None or not had.number or alike(had, lease), "who asks again is told the same"
        if lease is not None:
            out[clock][uid] = lease

    for clock in itertools.count(1):
        if leases.over:
            break
        for uid, at in itertools.product(uids, (clock, clock + 1)):
            if at == clock or random.random() < 0.5:
                ask(uid, at)
        if random.random() < 0.3:
            uids = [uid for uid in uids if random.random() < 0.9] + [next(unused)]
            leases.enter(tuple(uids))
            for uid in uids:
                ask(uid, clock)
        if random.random() < 0.3:
            leases = Leases.of(unpack(packed(leases.state())), static=True)
        for uid, lease in out.pop(clock, {}).items():
            if leases.commit(uid, lease.number) and lease.share:
                trained.update(n for start, stop in lease.read for n in range(start, stop))
    assert set(trained.values()) == {1} and len(trained) == leases.ledger.samples


def test_the_last_static_step_can_be_taken_back_and_is_then_committed_by_who_is_left() -> None:
    leases = static(12, 1, 2, 3)
    first = Step(leases, (1, 2, 3), 1)
    assert first.commit(1, 2, 3) and leases.ledger.trained == 6
    ahead = Step(leases, (1,), 2)
    leases = Leases.of(unpack(packed(leases.state())), static=True)
    leases.settle(1)
    assert leases.ledger.trained == 6, "it is what all have"
    leases.settle(0)
    assert leases.ledger == static(12).ledger
    leases.enter((1, 3))
    assert alike(leases.lease(1, 1), first.parts[1]) and alike(leases.lease(1, 2), ahead.parts[1])
    assert leases.commit(1, first.parts[1].number)
    leases.settle(0)
    assert leases.commit(1, first.parts[1].number), "what was said of a step that is not all there is void"
    assert leases.commit(3, first.parts[3].number) and leases.ledger.trained == 4
    assert leases.ledger.left == ((2, 4), (6, 12))


# Refusals.


def test_streams_sizes_and_damage_are_refused_with_words() -> None:
    with pytest.raises(UsageError, match=r"a stream has none: use a map-style dataset .* allreduce\(\)"):
        Leases(Ledger.begin(None), 4, 1)
    with pytest.raises(UsageError, match="epochs and batch_size must be at least 1; got 0 and 4"):
        Leases(Ledger.begin(8), 4, 0)
    with pytest.raises(DataError, match="the state of leases is damaged"):
        Leases.of({"ledger": 1})
