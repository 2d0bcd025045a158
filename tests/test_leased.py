"""Shards by demand: what is leased is handed out, once, and what is not handed out goes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_data import Numbers, Stream, children
from torch.utils.data import TensorDataset

from stretto.data import Leased, Position, Shard
from stretto.errors import DataError, Disagreement, UsageError
from stretto.ledger import Ledger
from stretto.server import Lease, Leases


class Server:
    """Leases samples to agents in this thread; whoever must wait waits until the others have trained what they have."""

    def __init__(self, samples: int, batch_size: int, epochs: int, seed: int = 0, static: bool = False) -> None:
        self.leases = Leases(Ledger.begin(samples, seed), batch_size, epochs, static)
        self.asked: list[int] = []
        self.back: list[int] = []
        self.out: dict[int, list[int]] = {}

    def shard(self, uid: int, dataset: Any, batch_size: int, epochs: int, **options: Any) -> Leased:
        self.join(uid)
        return Leased(
            dataset,
            batch_size,
            lambda ahead: self.ask(uid, ahead),
            epochs=epochs,
            give_back=lambda number: self.give_back(uid, number),
            **options,
        )

    def join(self, uid: int) -> None:
        self.out[uid] = []
        self.leases.enter(tuple(self.out))

    def ask(self, uid: int, ahead: bool) -> Lease | None:
        lease = self.leases.lease(uid)
        if lease is None and not ahead and not self.leases.over:
            for other in self.out:
                self.trained(other)
            lease = self.leases.lease(uid)
            assert lease is not None or self.leases.over
        if lease is not None:
            self.asked.append(lease.number)
        return lease

    def give_back(self, uid: int, number: int) -> None:
        self.back.append(number)
        self.leases.give_back(uid, number)

    def trained(self, uid: int) -> None:
        assert all([self.leases.commit(uid, number) for number in self.out[uid]])
        self.out[uid].clear()

    def die(self, uid: int) -> None:
        del self.out[uid]
        self.leases.enter(tuple(self.out))


def batches(server: Server, uid: int, shard: Leased) -> Generator[Any, None, None]:
    """Its batches, each committed when the next one is asked for."""
    for batch in shard:
        server.out[uid].append(shard.lease)
        yield batch
        server.trained(uid)


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 9), st.integers(0, 1 << 32).map(Random))
def test_agents_together_see_each_sample_once_in_every_epoch_whoever_is_quick(
    samples: int, agents: int, batch_size: int, random: Random
) -> None:
    server, seen = Server(samples, batch_size, 2), Counter[tuple[int, int]]()
    shards = {uid: server.shard(uid, torch.arange(samples), batch_size, 2) for uid in range(agents)}
    drawing = {uid: batches(server, uid, shard) for uid, shard in shards.items()}
    while drawing:
        uid = random.choice([*drawing, *list(drawing)[:1] * 3])
        batch = next(drawing[uid], None)
        if batch is None:
            del drawing[uid]
        else:
            seen.update((shards[uid].epoch, n) for n in batch.tolist())
    assert seen == {(epoch, n): 1 for epoch in range(2) for n in range(samples)}
    assert server.leases.over and sum(shard.drawn for shard in shards.values()) == len(server.asked)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [torch.arange(53), TensorDataset(torch.arange(53)), Numbers(53)], ids=type)
def test_one_alone_is_leased_the_batches_that_it_would_be_dealt(dataset: Any, workers: int) -> None:
    whole = Shard(dataset, 4, epochs=2, seed=8)
    server = Server(53, 4, 2, seed=8)
    shares: list[float] = []
    shard = server.shard(7, dataset, 4, 2, seed=8, workers=workers, on_batch=shares.append)
    assert len(shard) == len(whole)
    assert str(list(batches(server, 7, shard))) == str(list(whole))
    assert server.leases.ledger.trained == whole.ledger.trained and not server.back
    assert shard.ends and shard.drawn == len(shard) == len(shares) and sum(shares) == pytest.approx(len(shard))


def test_processes_read_ahead_and_what_they_read_in_vain_is_given_back() -> None:
    strangers = children()
    server = Server(100, 4, 1)
    shard = server.shard(7, Numbers(100), 4, 1, workers=2)
    drawing = batches(server, 7, shard)
    seen = [next(drawing).tolist() for _ in range(3)]
    assert len(server.asked) == 3 + 4, "two for each worker"
    drawing.close()
    assert server.back == server.asked[3:]
    server.trained(7)
    shard = server.shard(7, Numbers(100), 4, 1, workers=2)
    seen += [batch.tolist() for batch in batches(server, 7, shard)]
    assert sorted(n for batch in seen for n in batch) == list(range(100)) and server.leases.over
    del drawing, shard
    assert children() == strangers, "workers end with the pass"


def test_who_reads_ahead_gets_what_comes_back_after_it_was_told_that_there_is_none() -> None:
    server = Server(24, 4, 1)
    slow, quick = server.shard(1, torch.arange(24), 4, 1), server.shard(2, Numbers(24), 4, 1, workers=1)
    first = next(iter(slow)).tolist()
    drawing = batches(server, 2, quick)
    seen = [next(drawing).tolist() for _ in range(5)]
    server.die(1)
    seen += [batch.tolist() for batch in drawing]
    assert seen[5:] == [first] and server.leases.over


@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_read_and_is_dealt_anew_is_dropped_unseen(workers: int) -> None:
    server = Server(24, 4, 1)
    shard = server.shard(1, Numbers(24), 4, 1, workers=workers)
    drawing = batches(server, 1, shard)
    seen = [next(drawing).tolist()]
    shard.renew()
    seen += [batch.tolist() for batch in drawing]
    assert len(server.back) == 2 * workers and sorted(n for batch in seen for n in batch) == list(range(24))


def test_a_leased_shard_stands_where_all_stopped_and_its_state_is_a_shards() -> None:
    dealt = Shard(torch.arange(24), 4, epochs=2)
    drawing = iter(dealt)
    for _ in range(3):
        next(drawing)
    shard = Leased(torch.arange(24), 4, lambda ahead: None, epochs=2, rank=1, size=2)
    assert (len(shard), shard.drawn, shard.lease) == (6, 0, 0)
    shard.adopt(dealt.state())
    assert shard.position() == Position(0, 3, 12) and shard.proof() == dealt.proof()
    assert (shard.drawn, len(shard), shard.advanced) == (1, 6, (12, 12))
    resumed = Shard(torch.arange(24), 4, epochs=2)
    resumed.adopt(shard.state())
    assert str(list(resumed)) == str(list(drawing))
    shard.enter(resumed.ledger, 0, 1)
    assert shard.proof() == resumed.proof() and len(shard) == shard.drawn
    other = Leased(torch.arange(24), 2, lambda ahead: None)
    other.adopt(shard.state(), join=True)
    assert other.state() == shard.state(), "who joins has their batch size and epochs"


def test_what_was_trained_at_a_fence_is_seen_with_the_next_batch_wherever_the_fence_was() -> None:
    whole = Shard(torch.arange(24), 4)
    ledgers = [whole.ledger for _ in whole]

    def fence(end: bool) -> None:
        if shard.drawn == 2:
            shard.stand(ledgers[2])

    server = Server(24, 4, 1)
    shard = server.shard(1, torch.arange(24), 4, 1, on_draw=fence)
    seen = []
    for place, _ in enumerate(batches(server, 1, shard)):
        if place == 0:
            shard.stand(ledgers[0])
        seen.append(shard.advanced)
    assert seen == [(0, 4), (4, 4), (4, 12), (12, 12), (12, 12), (12, 12)]


def test_a_second_pass_begins_anew() -> None:
    passes: list[Server] = []

    def begin() -> None:
        passes.append(Server(10, 4, 1))
        passes[-1].join(1)

    shard = Leased(torch.arange(10), 4, lambda ahead: passes[-1].ask(1, ahead), on_begin=begin)

    def once() -> list[list[int]]:
        found = []
        for batch in shard:
            passes[-1].out[1].append(shard.lease)
            found.append(batch.tolist())
        return found

    assert once() == once() and len(passes) == 2 and shard.drawn == len(shard) == 3


def test_streams_and_other_data_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Stream is a stream, and a server leases .* map-style .* allreduce\(\)"):
        Leased(Stream(5), 4, lambda ahead: None)
    shard = Leased(torch.arange(12), 4, lambda ahead: None)
    with pytest.raises(Disagreement, match="the same dataset and the same seed"):
        shard.adopt(Shard(torch.arange(13), 4).state())
    with pytest.raises(Disagreement, match="the same dataset and the same seed"):
        shard.stand(Ledger.begin(12, 1))
    with pytest.raises(DataError, match=r"damaged.*take it from another agent"):
        shard.adopt({"ledger": 3})
