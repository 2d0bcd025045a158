"""Slots and chains: every element in one slot, balanced, backups elsewhere, and nothing moves without need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stretto.server.space import Extent, Slot, assign, plan_slots

Chains = tuple[tuple[int, ...], ...]

pieces = st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 2)), max_size=6).map(tuple)
sizes = st.lists(st.integers(1, 100), min_size=1, max_size=40)


def table(rows: int, width: int) -> Extent:
    return Extent("float32", ((rows * width, 0),), width)


@given(st.lists(st.builds(Extent, st.sampled_from(["float32", "float64", "bfloat16"]), pieces)), st.integers(1, 9000))
def test_every_element_of_every_bucket_lies_in_one_slot_of_its_groups(extents: list[Extent], nbytes: int) -> None:
    slots = plan_slots(extents, nbytes)
    assert [slot.number for slot in slots] == list(range(len(slots)))
    found: list[list[int]] = [[] for _ in extents]
    for slot in slots:
        assert slot.start == len(found[slot.bucket]) and slot.dtype == extents[slot.bucket].dtype
        assert [p.start for p in slot.pieces] == [0, *(p.stop for p in slot.pieces[:-1])]
        assert all(a.group != b.group for a, b in zip(slot.pieces, slot.pieces[1:], strict=False))
        found[slot.bucket] += [p.group for p in slot.pieces for _ in range(p.stop - p.start)]
        assert len(found[slot.bucket]) == slot.stop
    assert found == [[group for elements, group in e.pieces for _ in range(elements)] for e in extents]


@given(st.integers(1, 5000), st.integers(1, 70), st.integers(0, 9000))
def test_a_table_is_cut_between_rows_into_at_most_eight(rows: int, width: int, nbytes: int) -> None:
    slots = plan_slots([table(rows, width)], nbytes)
    assert 1 <= len(slots) <= 8
    assert all(slot.width == width and slot.start % width == slot.stop % width == 0 < slot.elements for slot in slots)
    assert [s.start for s in slots] + [rows * width] == [0] + [s.stop for s in slots]


def test_slots_are_an_eighth_of_the_model_within_bounds_and_alike_in_size() -> None:
    def lengths(*buckets: int) -> list[int]:
        return [slot.nbytes for slot in plan_slots([Extent("float32", ((n // 4, 0),)) for n in buckets])]

    assert lengths(1000, 64) == [1000, 64], "two buckets never share a slot"
    assert lengths(1 << 20) == [1 << 20]
    assert lengths(16 << 20) == [2 << 20] * 8
    assert lengths(256 << 20) == [4 << 20] * 64
    assert lengths(5 << 20, 5 << 20) == [1280 << 10] * 8
    assert [slot.nbytes for slot in plan_slots([table(1_000_000, 64)])] == [32_000_000] * 8
    assert plan_slots([]) == plan_slots([Extent("float32", ())]) == ()


def test_slots_travel() -> None:
    slots = plan_slots([Extent("float32", ((700, 0), (300, 1))), table(10, 3)], 1000)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(slots), type=tuple[Slot, ...]) == slots


# Chains.


def known(chains: Chains, gone: int | None = None) -> dict[int, tuple[int, ...]]:
    return {slot: tuple(rank for rank in chain if rank != gone) for slot, chain in enumerate(chains)}


def loads(sizes: Sequence[int], chains: Chains, holders: Sequence[int], place: int = 0) -> list[int]:
    carried: Counter[int] = Counter()
    for size, chain in zip(sizes, chains, strict=True):
        carried[chain[place]] += size
    return [carried[rank] for rank in holders]


def check(sizes: Sequence[int], chains: Chains, holders: Sequence[int], hosts: Sequence[int], replicas: int) -> None:
    length = min(len(holders), replicas or 2)
    for chain in chains:
        assert len(chain) == len(set(chain)) == length and set(chain) <= set(holders)
        others = {hosts[rank] for rank in holders} - {hosts[chain[0]]}
        assert length == 1 or not others or hosts[chain[1]] in others
    assert max(loads(sizes, chains, holders)) <= sum(sizes) / len(holders) + max(sizes)


@given(st.data(), sizes, st.integers(1, 9), st.integers(0, 4))
def test_primaries_are_balanced_and_backups_on_another_host_whoever_had_what(
    data: st.DataObject, sizes: list[int], ranks: int, replicas: int
) -> None:
    hosts = data.draw(st.lists(st.integers(0, 3), min_size=ranks, max_size=ranks))
    holders = data.draw(st.lists(st.integers(0, ranks - 1), min_size=1, unique=True).map(sorted))
    anybody = st.lists(st.integers(0, ranks - 1), unique=True)
    current = data.draw(st.dictionaries(st.integers(0, len(sizes) - 1), anybody))
    chains = assign(sizes, holders, hosts, replicas, current)
    check(sizes, chains, holders, hosts, replicas)
    assert chains == assign(sizes, holders, hosts, replicas, dict(reversed(current.items())))
    assert chains == assign(sizes, holders, hosts, replicas, known(chains)), "what stands, stays"


@given(st.data(), sizes, st.integers(2, 9), st.integers(0, 3))
def test_slots_that_one_who_goes_had_no_copy_of_keep_their_primary(
    data: st.DataObject, sizes: list[int], ranks: int, replicas: int
) -> None:
    hosts = data.draw(st.lists(st.integers(0, 3), min_size=ranks, max_size=ranks))
    holders = list(range(ranks))
    before = assign(sizes, holders, hosts, replicas, {})
    while len(holders) > 1:
        gone = holders.pop(data.draw(st.integers(0, len(holders) - 1)))
        after = assign(sizes, holders, hosts, replicas, known(before, gone))
        check(sizes, after, holders, hosts, replicas)
        assert all(a[0] == b[0] for a, b in zip(after, before, strict=True) if gone not in b)
        before = after


@pytest.mark.parametrize("ranks", [3, 4, 8, 30])
@pytest.mark.parametrize("slots", [8, 64])
def test_one_that_goes_moves_its_slots_alone_and_all_who_are_left_take_some(ranks: int, slots: int) -> None:
    sizes, hosts = [4] * slots, list(range(ranks))
    before = assign(sizes, range(ranks), hosts, 0, {})
    for gone in range(ranks):
        left = [rank for rank in range(ranks) if rank != gone]
        after = assign(sizes, left, hosts, 0, known(before, gone))
        assert all(a == b for a, b in zip(after, before, strict=True) if gone not in b)
        assert all(b[1] in a for a, b in zip(after, before, strict=True) if b[0] == gone), "whose copy is there has it"
        for place in (0, 1):
            carried = loads(sizes, after, left, place)
            assert max(carried) - min(carried) <= 4 * (1 + place)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 30])
@pytest.mark.parametrize("slots", [8, 64])
def test_one_that_comes_is_given_its_part_and_nothing_else_moves(ranks: int, slots: int) -> None:
    sizes, hosts = [4] * slots, list(range(ranks + 1))
    before = assign(sizes, range(ranks), hosts, 0, {})
    after = assign(sizes, range(ranks + 1), hosts, 0, known(before))
    assert (moved := sum(a[0] != b[0] for a, b in zip(after, before, strict=True))) == slots // (ranks + 1)
    assert loads(sizes, after, [ranks]) == [4 * moved]
    copies = [set(a) - set(b) for a, b in zip(after, before, strict=True)]
    assert all(new <= {ranks} for new in copies), "copies go to nobody else"
    assert sum(map(len, copies)) <= 2 * -(-slots // (ranks + 1)) or ranks == 1


@given(sizes, st.integers(2, 9), st.randoms(use_true_random=False))
def test_a_death_costs_one_copy_a_slot(sizes: list[int], ranks: int, random: object) -> None:
    assume(len(sizes) >= ranks)
    hosts = list(range(ranks))
    before = assign(sizes, hosts, hosts, 0, {})
    left = known(before, 0)
    after = assign(sizes, hosts[1:], hosts, 0, left)
    assert all(len(set(a) - set(left[slot])) <= 1 for slot, a in enumerate(after) if 0 in before[slot])


@pytest.mark.parametrize("current", [{}, {slot: tuple(range(300)) for slot in range(1200)}], ids=["nobody", "all"])
def test_three_hundred_holders_are_no_trouble(current: dict[int, tuple[int, ...]]) -> None:
    sizes, hosts = [4 << 20] * 1200, [rank // 4 for rank in range(301)]
    chains = assign(sizes, range(300), hosts, 0, current)
    check(sizes, chains, range(300), hosts, 0)
    after = assign(sizes, range(301), hosts, 0, known(chains))
    assert sum(a[0] != b[0] for a, b in zip(after, chains, strict=True)) in (3, 4)
