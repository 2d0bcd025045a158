"""The ledger: every sample is committed exactly once an epoch, whoever dies or comes, and all agents know it alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import msgspec
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from stretto.errors import Disagreement, UsageError
from stretto.ledger import OPEN, Deal, Ledger, Ranges, count, deal, shares_of
from stretto.ledger.ranges import below, cut, without

sizes = st.tuples(st.integers(1, 400), st.integers(1, 40), st.integers(1, 70))
shares = st.lists(st.integers(1, 9), min_size=1, max_size=7)


def positions(ranges: Iterable[tuple[int, int]]) -> list[int]:
    return [p for start, stop in ranges for p in range(start, stop)]


def ranges(members: Iterable[int]) -> Ranges:
    found: list[tuple[int, int]] = []
    for p in sorted(members):
        if found and found[-1][1] == p:
            found[-1] = (found[-1][0], p + 1)
        else:
            found.append((p, p + 1))
    return tuple(found)


def dealt(samples: int, agents: int, batch_size: int) -> Deal:
    return deal(Ledger.begin(samples), (1,) * agents, batch_size)


# Ranges.


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)), st.integers(0, 60), st.integers(0, 60))
def test_ranges_are_sets(a: set[int], b: set[int], i: int, j: int) -> None:
    assert positions(ranges(a)) == sorted(a) and count(ranges(a)) == len(a)
    assert without(ranges(a), ranges(a & b)) == ranges(a - b)
    assert cut(ranges(a), i, j) == ranges(sorted(a)[i:j])
    assert below(ranges(a), i) == ranges(p for p in a if p < i)
    if b - a:
        with pytest.raises(ValueError, match="not left"):
            without(ranges(a), ranges(b))


# Deals.


@given(sizes, shares)
def test_every_position_is_dealt_exactly_once_in_ascending_order(sizes: tuple[int, int, int], s: list[int]) -> None:
    samples, agents, batch_size = sizes
    for d in (dealt(samples, agents, batch_size), deal(Ledger.begin(samples), s, batch_size)):
        parts = [p for step in range(d.steps) for rank in range(d.agents) for p in positions(d.part(step, rank))]
        assert parts == list(range(samples))
        assert parts == [p for step in range(d.steps) for p in positions(d.batch(step))]


@given(sizes)
def test_equal_parts_differ_by_one_fit_the_batch_and_are_empty_only_where_samples_lack(
    sizes: tuple[int, int, int],
) -> None:
    samples, agents, batch_size = sizes
    d = dealt(samples, agents, batch_size)
    fewest = min(2, batch_size)
    assert d.steps == max(1, min(math.ceil(samples / (agents * batch_size)), samples // (agents * fewest)))
    for step in range(d.steps):
        lengths = [count(d.part(step, rank)) for rank in range(agents)]
        if samples >= agents * fewest:
            assert max(lengths) - min(lengths) <= 1 and min(lengths) >= fewest
            assert max(lengths) <= (batch_size if batch_size > 3 or samples % agents == 0 else 2 * fewest)
        else:
            assert max(lengths) <= fewest + 1


@given(sizes, shares, st.integers(0, 400), st.randoms(use_true_random=False))
def test_nobody_is_dealt_a_single_sample_but_the_only_one_whoever_died_before(
    sizes: tuple[int, int, int], s: list[int], steps: int, random: object
) -> None:
    samples, agents, batch_size = sizes
    ledger = Ledger.begin(samples)
    assume(samples > 1 and batch_size > 1)
    for _ in range(steps):
        members = s if random.random() < 0.5 else [1] * agents  # type: ignore[attr-defined]
        d = deal(ledger, members, batch_size)
        if d.epoch:
            return
        for rank in range(d.agents):
            assert count(d.part(0, rank)) != 1 and count(d.part(0, rank) or d.stand_in(0)) > 1
        ledger = ledger.commit(d, 0, [r for r in range(d.agents) if random.random() < 0.7])  # type: ignore[attr-defined]


@given(st.integers(1, 400), st.integers(1, 6), st.integers(4, 12), st.integers(1, 6))
def test_global_batches_depend_on_the_global_batch_size_alone(samples: int, a: int, k: int, b: int) -> None:
    few, many = a, a * b
    assume(samples >= 2 * many)
    p, q = dealt(samples, few, k * b), dealt(samples, many, k)
    assert [p.batch(s) for s in range(p.steps)] == [q.batch(s) for s in range(q.steps)]


@given(st.integers(1, 400), shares, st.integers(1, 20))
def test_parts_are_proportional_to_shares_within_one_sample_or_a_pair(
    samples: int, s: list[int], batch_size: int
) -> None:
    d = deal(Ledger.begin(samples), s, batch_size)
    for step in range(d.steps):
        parts = [count(d.part(step, rank)) for rank in range(len(s))]
        fair = [count(d.batch(step)) * share / sum(s) for share in s]
        paired = d.fewest == 2 and all(part % 2 == 0 for part in parts[:-1])
        assert all(abs(part - wanted) < (3 if paired else 1) for part, wanted in zip(parts, fair, strict=True))


@given(st.integers(1, 9), st.integers(1, 300), st.integers(1, 7), st.integers(1, 20))
def test_equal_shares_are_no_shares(share: int, samples: int, agents: int, batch_size: int) -> None:
    p, q = dealt(samples, agents, batch_size), deal(Ledger.begin(samples), (share,) * agents, batch_size)
    for step in range(p.steps):
        assert [p.part(step, r) for r in range(agents)] == [q.part(step, r) for r in range(agents)]


@given(st.integers(1, 400), shares, st.integers(1, 20))
def test_the_mean_over_agents_of_share_times_gradient_is_the_mean_over_samples(
    samples: int, s: list[int], batch_size: int
) -> None:
    d = deal(Ledger.begin(samples), s, batch_size)
    gradients = torch.randn(samples, dtype=torch.float64)
    for step in (0, d.steps // 2, d.steps - 1):
        parts = [positions(d.part(step, rank)) for rank in range(d.agents)]
        means = [gradients[p].mean() * d.share(step, r) if p else torch.tensor(0.0) for r, p in enumerate(parts)]
        whole = gradients[positions(d.batch(step))].mean()
        assert torch.allclose(torch.stack(means).mean().double(), whole, atol=1e-12)
        assert sum(d.share(step, r) for r in range(d.agents)) == pytest.approx(d.agents, abs=1e-9)


@given(sizes, st.data())
def test_what_is_left_is_dealt_as_it_was_dealt_before(sizes: tuple[int, int, int], data: st.DataObject) -> None:
    samples, agents, batch_size = sizes
    ledger = Ledger.begin(samples)
    whole = deal(ledger, (1,) * agents, batch_size)
    done = data.draw(st.integers(0, whole.steps - 1), label="steps done")
    for step in range(done):
        ledger = ledger.commit(whole, step)
    rest = deal(ledger, (1,) * agents, batch_size)
    assert rest.steps == whole.steps - done
    for step in range(rest.steps):
        for rank in range(agents):
            assert rest.part(step, rank) == whole.part(done + step, rank)
    assert ledger.commit(rest, 0) == ledger.commit(whole, done)


def test_the_last_of_a_small_rest_goes_to_some_and_weighs_nothing_at_the_others() -> None:
    d = dealt(4, 4, 8)
    assert [d.part(0, rank) for rank in range(4)] == [(), ((0, 2),), (), ((2, 4),)]
    assert [d.share(0, rank) for rank in range(4)] == [0, 2, 0, 2]
    assert d.stand_in(0) == ((0, 2),)


# Commits.


@given(st.integers(1, 120), st.integers(1, 12), st.randoms(use_true_random=False))
def test_every_sample_is_committed_exactly_once_an_epoch_whoever_dies_or_comes(
    samples: int, batch_size: int, random: object
) -> None:
    """Steps are committed by anybody or nobody of the members, several at a time, and dealt anew at any time."""
    roll = random.random  # type: ignore[attr-defined]
    ledger = Ledger.begin(samples, seed=3)
    trained: Counter[tuple[int, int]] = Counter()
    while ledger.epoch < 2:
        ahead, members = ledger, tuple(1 + int(4 * roll()) for _ in range(1 + int(5 * roll())))
        window = []
        for _ in range(1 + int(6 * roll())):
            d = deal(ahead, members, batch_size)
            window.append((d, 0))
            ahead = ahead.commit(d, 0)
        ranks = None if roll() < 0.3 else [r for r in range(len(members)) if roll() < 0.7]
        for d, step in window:
            ledger = ledger.commit(d, step, ranks)
            for rank in range(len(members)) if ranks is None else ranks:
                trained.update((d.epoch, p) for p in positions(d.part(step, rank)))
        assert ledger.trained == trained.total()
        if ranks is None:
            assert ledger == ahead
    for epoch in range(2):
        assert sorted(p for e, p in trained if e == epoch) == list(range(samples))
    assert set(trained.values()) == {1}


def test_an_epoch_does_not_end_before_the_parts_of_the_dead_are_trained() -> None:
    ledger = Ledger.begin(12)
    d = deal(ledger, (1, 1), 3)
    ledger = ledger.commit(d, 0, [0]).commit(d, 1)
    assert (ledger.epoch, ledger.left) == (0, ((3, 6),))
    rest = deal(ledger, (1,), 3)
    ledger = ledger.commit(rest, 0)
    assert (ledger.epoch, ledger.left, ledger.steps, ledger.trained) == (1, ((0, 12),), 3, 12)


def test_an_epoch_begun_before_the_last_ended_goes_on_after_it() -> None:
    """Gradients accumulated over the border, and an agent died in between."""
    ledger = Ledger.begin(4)
    this = deal(ledger, (1, 1), 2)
    after = deal(ledger.past(this), (1, 1), 1)
    ledger = ledger.commit(this, 0, [0]).commit(after, 0, [0])
    assert (ledger.epoch, ledger.left, ledger.ahead) == (0, ((2, 4),), (((1, 4),),))
    ledger = ledger.commit(deal(ledger, (1,), 2), 0)
    assert (ledger.epoch, ledger.left, ledger.ahead) == (1, ((1, 4),), ())


def test_what_is_committed_twice_is_refused() -> None:
    ledger = Ledger.begin(12)
    d = deal(ledger, (1, 1), 3)
    once = ledger.commit(d, 0, [1])
    for again in (None, [1]):
        with pytest.raises(Disagreement, match="trained twice: epoch 0, step 1: positions"):
            once.commit(d, 0, again)
    over = once.commit(d, 0, [0]).commit(d, 1)
    with pytest.raises(Disagreement, match="epoch 0 has ended"):
        over.commit(d, 1)
    with pytest.raises(UsageError, match="dealt to 2 agents"):
        ledger.commit(d, 0, [2])


def test_equal_digests_are_equal_histories() -> None:
    begin = Ledger.begin(24)
    d, other = deal(begin, (1, 1), 3), deal(begin, (1, 2), 3)
    histories = [
        begin,
        Ledger.begin(24, seed=1),
        Ledger.begin(24, shuffle=False),
        begin.commit(d, 0),
        begin.commit(d, 1),
        begin.commit(d, 0, [0]),
        begin.commit(d, 0, [1]),
        begin.commit(other, 0),
        begin.commit(d, 0).commit(d, 1),
        begin.commit(d, 1).commit(d, 0),
    ]
    assert len({ledger.digest for ledger in histories}) == len(histories)
    assert begin.commit(d, 0, [1, 0]) == begin.commit(d, 0, None)


def test_a_ledger_is_a_value_that_survives_json() -> None:
    ledger = Ledger.begin(24, seed=-7)
    ledger = ledger.commit(deal(ledger, (1, 1, 1), 3), 1, [0, 2])
    assert msgspec.json.decode(msgspec.json.encode(ledger), type=Ledger) == ledger
    stream = Ledger.begin(None)
    assert msgspec.json.decode(msgspec.json.encode(stream), type=Ledger) == stream


@pytest.mark.parametrize("left", [(), ((3, 3),), ((0, 3), (3, 5)), ((4, 5), (0, 3)), ((0, 25),), ((-1, 5),), ((5, 4),)])
def test_a_damaged_ledger_is_refused(left: Ranges) -> None:
    raw = msgspec.to_builtins(Ledger.begin(24)) | {"left": left}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(raw, Ledger)


def test_the_proof_says_what_is_proven_and_no_more() -> None:
    ledger = Ledger.begin(60_000)
    d = deal(ledger, (1, 1), 5_000)
    assert ledger.commit(d, 0).proof().startswith("10,000 samples of 60,000 in epoch 0 so far, none twice; ledger ")
    for step in range(6):
        ledger = ledger.commit(d, step)
    assert ledger.proof() == f"60,000 samples, each exactly once; ledger {ledger.digest[:12]}"
    for _ in range(6):
        ledger = ledger.commit(deal(ledger, (1, 1), 5_000), 0)
    assert ledger.proof().startswith("60,000 samples, each exactly once in each of 2 epochs; ledger ")
    ledger = ledger.commit(deal(ledger, (1,), 5_000), 0)
    assert "in each of 2 epochs; 5,000 samples of 60,000 in epoch 2 so far, none twice;" in ledger.proof()


# Streams.


def test_a_stream_is_dealt_a_step_at_a_time_until_somebody_sees_its_end() -> None:
    ledger = Ledger.begin(None)
    first = deal(ledger, (1, 1), 3)
    ledger = ledger.commit(first, 0, [0])
    assert ledger.open and ledger.left == ((3, OPEN),)
    second = deal(ledger, (1, 1), 3).until(7)
    assert [second.part(0, rank) for rank in (0, 1)] == [((3, 6),), ((6, 7),)]
    assert [second.share(0, rank) for rank in (0, 1)] == [1.5, 0.5]
    part, whole = ledger.commit(second, 0, [1]), ledger.commit(second, 0)
    assert (part.epoch, part.left, part.open) == (0, ((3, 6),), False)
    assert (whole.epoch, whole.left, whole.trained) == (1, ((0, OPEN),), 7)
    assert whole.proof().startswith("7 samples of a stream, each exactly once;")
    assert part.proof().startswith("4 samples of a stream, none twice;")


# Shares.


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=9), st.integers(1, 64))
def test_shares_are_proportional_to_speeds(speeds: list[float], most: int) -> None:
    found = shares_of(speeds, most)
    scale = most / max(speeds)
    common = most / max(found)
    assert all(
        abs(share * common - max(1.0, speed * scale)) <= 0.5 + 1e-6 for share, speed in zip(found, speeds, strict=True)
    )
    assert math.gcd(*found) == 1
    assert found == shares_of([s * 2 for s in speeds], most)


def test_who_was_not_measured_counts_as_the_median() -> None:
    assert shares_of([0.0, math.nan], 8) == (1, 1)
    assert shares_of([30.0, 0.0, 10.0, 20.0, math.inf], 6) == (3, 2, 1, 2, 2)
    with pytest.raises(UsageError, match="at least 1"):
        shares_of([1.0], 0)


@pytest.mark.parametrize(("shares", "batch_size"), [((), 1), ((1, 0), 1), ((1,), 0)])
def test_what_cannot_be_dealt_is_refused(shares: tuple[int, ...], batch_size: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        deal(Ledger.begin(3), shares, batch_size)


def test_no_samples_are_no_ledger() -> None:
    with pytest.raises(UsageError, match="the dataset is empty"):
        Ledger.begin(0)
