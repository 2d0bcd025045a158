"""A slot applies each push once, keeps agents as near as it is told to, and can take its last step back."""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slots import DENSE, TABLES, drawn, made, table
from torch import Tensor

from stretto.codecs import Int8
from stretto.errors import ProtocolError, UsageError
from stretto.server import Extent, Push, Rows, Rule, Server, Shard, plan_slots
from stretto.state import packed, unpack
from stretto.text import parse

ELEMENTS, HEIGHT, WIDTH = 60, 12, 5
KINDS = [*DENSE, *(f"{kind} of a table" for kind in TABLES)]
seeds = st.integers(0, 2**32)


class Slots:
    """A slot, its optimizer, and pushes to it."""

    def __init__(self, kind: str = "sgd") -> None:
        name, _, sparse = kind.partition(" of ")
        self.sparse = bool(sparse)
        self.optimizer = made(name, [drawn(0, ELEMENTS)])
        self.rule = Rule.of(self.optimizer)
        (dense,) = plan_slots([Extent("float32", ((ELEMENTS, 0),))])
        self.slot = table(0, HEIGHT, WIDTH) if sparse else dense

    def shard(self, server: Server, members: tuple[int, ...] = ()) -> Shard:
        found = Shard(self.slot, server, self.rule, drawn(0, ELEMENTS))
        found.enter(members)
        return found

    def update(self, *seed: int) -> Tensor | Rows:
        number = hash(seed)
        if not self.sparse:
            return drawn(number, ELEMENTS)
        rows = torch.randperm(HEIGHT, generator=torch.Generator().manual_seed(number))[: number % HEIGHT]
        return Rows(rows.sort().values, drawn(number, len(rows), WIDTH))

    def push(self, uid: int, clock: int, have: int = 0, weight: float = 1.0) -> Push:
        return Push(uid, clock, have, weight, self.rule.hyper(self.optimizer))


def stepped(slots: Slots, values: Tensor, *gradients: Tensor) -> Tensor:
    """``values`` after a step with each of the gradients, by the optimizer itself."""
    values = values.clone()
    one = made("sgd", [values])
    for gradient in gradients:
        values.grad = gradient
        one.step()
    return values


def bits(shard: Shard) -> Tensor:
    return packed(shard.state())


# -- staleness 0 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DENSE)
@settings(max_examples=8, deadline=None)
@given(
    orders=st.lists(st.permutations([5, 3, 9]), min_size=3, max_size=3),
    weights=st.lists(st.sampled_from([0.5, 1.0, 1.5, 0.0]), min_size=3, max_size=3),
)
def test_with_staleness_0_all_make_one_step_with_their_mean_whoever_comes_first(
    kind: str, orders: list[list[int]], weights: list[float]
) -> None:
    slots, members = Slots(kind), (5, 3, 9)
    shard = slots.shard(Server(0), members)
    alone = drawn(0, ELEMENTS)
    optimizer = made(kind, [alone])
    share, inbox = dict(zip(members, weights, strict=True)), torch.empty(ELEMENTS)
    for clock, order in enumerate(orders, 1):
        for uid in order:
            assert not shard.may(uid, clock)
            shard.push(slots.push(uid, clock, clock - 1, share[uid]), inbox.copy_(drawn(uid * clock, ELEMENTS)))
            inbox.fill_(torch.nan)
        mean = drawn(5 * clock, ELEMENTS) * share[5]
        for uid in members[1:]:
            mean = mean + drawn(uid * clock, ELEMENTS) * share[uid]
        alone.grad = mean * (1 / 3)
        optimizer.step()
        assert torch.equal(shard.values, alone)
        assert shard.version == clock
        assert all(shard.may(uid, clock) for uid in members)


def test_with_staleness_0_rows_are_added_where_they_meet() -> None:
    slots = Slots("sgd of a table")
    shard = slots.shard(Server(0), (1, 2))
    shard.push(slots.push(1, 1, weight=0.5), Rows(torch.tensor([2, 7]), torch.ones(2, WIDTH)))
    shard.push(slots.push(2, 1, weight=1.5), Rows(torch.tensor([0, 7]), torch.ones(2, WIDTH)))
    expected = drawn(0, ELEMENTS).view(HEIGHT, WIDTH)
    for row, times in (0, 0.75), (2, 0.25), (7, 1.0):
        expected[row] -= 0.1 * times
    torch.testing.assert_close(shard.values.view(HEIGHT, WIDTH), expected)
    assert shard.rows_since(0).tolist() == [0, 2, 7]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("members", [(1,), (1, 2)], ids=["alone", "two"])
def test_settling_takes_the_last_step_back_to_the_bit(kind: str, before: int, members: tuple[int, ...]) -> None:
    slots = Slots(kind)
    shard = slots.shard(Server(0), members)
    for clock in range(1, before + 1):
        for uid in members:
            shard.push(slots.push(uid, clock, clock - 1), slots.update(uid, clock))
    was = bits(shard).clone()
    for uid in members:
        update = slots.update(uid, before + 1)
        shard.push(slots.push(uid, before + 1, before), update)
        if isinstance(update, Rows):
            update.rows.zero_()
    assert shard.version == before + 1
    shard.settle(before)
    assert torch.equal(bits(shard), was)
    with pytest.raises(ProtocolError, match=f"is at version {before} and cannot go to {before - 1}; no step back"):
        shard.settle(before - 1)


@pytest.mark.parametrize("kind", ["adam", "sparse_adam of a table"])
def test_after_settling_the_step_is_made_anew_by_whoever_is_left(kind: str) -> None:
    slots = Slots(kind)
    one, other = slots.shard(Server(0), (1, 2, 3)), slots.shard(Server(0), (1, 3))
    for uid in (1, 2, 3):
        one.push(slots.push(uid, 1), slots.update(uid, 1))
    one.push(slots.push(1, 2, 1), slots.update(1, 2))
    one.settle(0)
    one.enter((1, 3))
    for shard in one, other:
        for clock in (1, 2):
            for uid in (1, 3):
                assert shard.push(slots.push(uid, clock, clock - 1), slots.update(uid, clock + 10))
    assert torch.equal(bits(one), bits(other))


def test_settling_where_a_step_is_waited_for_forgets_what_waits() -> None:
    slots = Slots()
    shard = slots.shard(Server(0), (1, 2))
    shard.push(slots.push(1, 1), drawn(1, ELEMENTS))
    shard.settle(0)
    assert shard.push(slots.push(2, 1), drawn(2, ELEMENTS))
    assert shard.version == 0
    assert shard.push(slots.push(1, 1), drawn(2, ELEMENTS))
    assert torch.equal(shard.values, stepped(slots, drawn(0, ELEMENTS), drawn(2, ELEMENTS)))


def test_what_is_applied_on_arrival_cannot_be_settled() -> None:
    with pytest.raises(ValueError, match="each agent has its own clock"):
        Slots().shard(Server(1), (1, 2)).settle(0)


# -- on arrival ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data(), agents=st.integers(1, 5), bound=st.integers(1, 4))
def test_nobody_begins_a_step_more_than_k_ahead_and_k_ahead_is_reached(
    data: st.DataObject, agents: int, bound: int
) -> None:
    slots, uids = Slots(), tuple(range(1, agents + 1))
    shard = slots.shard(Server(bound), uids)
    pushed, began = dict.fromkeys(uids, 0), dict.fromkeys(uids, 0)
    for _ in range(40):
        free = [uid for uid in uids if pushed[uid] == began[uid] and shard.may(uid, pushed[uid])]
        begun = [uid for uid in uids if began[uid] > pushed[uid]]
        assert free or begun, "all wait for each other"
        uid = data.draw(st.sampled_from(free + begun))
        if uid in begun:
            pushed[uid] += 1
            assert shard.push(slots.push(uid, pushed[uid], shard.version), drawn(1, ELEMENTS))
        else:
            began[uid] += 1
            assert pushed[uid] - min(pushed.values()) <= bound
        assert shard.slowest == min(pushed.values())
        for other in uids:
            assert shard.may(other, pushed[other]) == (pushed[other] - min(pushed.values()) <= bound)


@pytest.mark.parametrize("bound", [1, 4])
def test_who_waits_for_one_that_stands_still_is_k_steps_ahead(bound: int) -> None:
    slots = Slots()
    shard = slots.shard(Server(bound), (1, 2))
    clock = 0
    while shard.may(1, clock):
        clock += 1
        shard.push(slots.push(1, clock, shard.version), drawn(1, ELEMENTS))
    assert clock == bound + 1, "it began a step when it was k ahead, and no other after it"
    shard.push(slots.push(2, 1), drawn(1, ELEMENTS))
    assert shard.may(1, clock)


@pytest.mark.parametrize(
    "leave", [lambda shard: shard.enter((1, 3)), lambda shard: shard.pause(2)], ids=["gone", "paused"]
)
@pytest.mark.parametrize("staleness", [0, 2])
def test_who_is_gone_or_paused_holds_nobody_up(leave: Callable[[Shard], None], staleness: int) -> None:
    slots = Slots()
    shard = slots.shard(Server(staleness), (1, 2, 3))
    last = staleness + 1
    for clock in range(1, last + 1):
        for uid in (1, 3):
            shard.push(slots.push(uid, clock), drawn(1, ELEMENTS))
    assert not shard.may(1, last)
    leave(shard)
    assert shard.may(1, last)
    assert shard.may(3, last)


@pytest.mark.parametrize("server", [Server(0), Server(compensate=0.1)], ids=str)
def test_nothing_of_who_is_gone_remains(server: Server) -> None:
    slots = Slots()
    shard = slots.shard(server, (1, 2, 3))
    shard.sent(2)
    shard.push(slots.push(2, 1), drawn(1, ELEMENTS))
    shard.pause(2)
    shard.enter((1, 3))
    state = shard.state()
    assert (state["clocks"], state["sent"], state["waiting"], state["paused"]) == ({1: 0, 3: 0}, {}, [], set())


def test_who_pushes_or_is_resumed_is_waited_for_again() -> None:
    slots = Slots()
    shard = slots.shard(Server(1), (1, 2))
    for clock in range(1, 6):
        shard.push(slots.push(1, clock), drawn(1, ELEMENTS))
    for wake in (lambda: shard.resume(2, 0), lambda: shard.push(slots.push(2, 1), drawn(1, ELEMENTS))):
        shard.pause(2)
        assert shard.may(1, 5)
        wake()
        assert not shard.may(1, 5)
    shard.pause(1)
    shard.pause(2)
    assert shard.slowest == max(shard.clocks.values())


def test_who_is_resumed_is_waited_for_from_the_clock_that_it_counts() -> None:
    slots = Slots()
    shard = slots.shard(Server(2), (1, 2))
    shard.pause(2)
    for clock in range(1, 10):
        shard.push(slots.push(1, clock), drawn(1, ELEMENTS))
    shard.resume(2, 8)
    assert shard.slowest == 8
    assert (shard.may(1, 10), shard.may(1, 11)) == (True, False)
    assert not shard.push(slots.push(2, 8), drawn(1, ELEMENTS))
    assert shard.push(slots.push(2, 9), drawn(1, ELEMENTS))
    shard.resume(2, 3)
    assert shard.clocks[2] == 9


def test_who_is_new_begins_where_the_slowest_is_or_where_it_is_told_to() -> None:
    slots = Slots()
    shard = slots.shard(Server(3), (1, 2))
    for uid, clocks in (1, 3), (2, 2):
        for clock in range(1, clocks + 1):
            shard.push(slots.push(uid, clock), drawn(1, ELEMENTS))
    shard.enter((1, 2, 7))
    assert shard.clocks == {1: 3, 2: 2, 7: 2}
    shard.enter((1, 8, 7), floor=3)
    assert shard.clocks == {1: 3, 7: 2, 8: 3}
    together = slots.shard(Server(0), (1,))
    together.push(slots.push(1, 1), drawn(1, ELEMENTS))
    together.enter((1, 2))
    assert together.clocks == {1: 1, 2: 1}


@pytest.mark.parametrize("server", [Server(), Server(2)], ids=str)
def test_as_many_pushes_as_agents_move_as_one_step_of_all_together(server: Server) -> None:
    slots, members = Slots(), (1, 2, 3, 4)
    shard = slots.shard(server, members)
    for uid in members:
        shard.push(slots.push(uid, 1), drawn(1, ELEMENTS))
    torch.testing.assert_close(shard.values, stepped(slots, drawn(0, ELEMENTS), drawn(1, ELEMENTS)))


def test_a_push_counts_as_its_share_of_the_samples_and_less_the_staler_it_is() -> None:
    slots = Slots()
    shard = slots.shard(Server(damped=True), (1, 2))
    expected, gradient = drawn(0, ELEMENTS), drawn(1, ELEMENTS)
    for uid, have, weight, rate in (1, 0, 1.0, 0.1 / 2), (1, 1, 0.5, 0.1 / 4), (2, 0, 1.0, 0.1 / 2 / 3):
        shard.push(slots.push(uid, shard.clocks[uid] + 1, have, weight), gradient)
        expected -= rate * gradient
    torch.testing.assert_close(shard.values, expected)


def test_a_push_without_weight_moves_the_clock_and_nothing_else() -> None:
    slots = Slots("adam")
    shard = slots.shard(Server(1), (1, 2))
    was = packed(shard.state()["optimizer"])
    shard.push(slots.push(1, 1, weight=0.0), drawn(1, ELEMENTS))
    assert (shard.version, shard.clocks) == (1, {1: 1, 2: 0})
    assert torch.equal(shard.values, drawn(0, ELEMENTS))
    assert torch.equal(packed(shard.state()["optimizer"]), was)


@pytest.mark.parametrize("kind", ["sgd", "sgd of a table"])
def test_a_stale_gradient_is_compensated_for_what_changed_since_its_agent_was_answered(kind: str) -> None:
    slots = Slots(kind)
    shard = slots.shard(Server(compensate=0.5), (1, 2))
    rows = torch.arange(HEIGHT)

    def push(uid: int, gradient: Tensor) -> None:
        told = slots.push(uid, shard.clocks[uid] + 1, shard.version)
        shard.push(told, Rows(rows, gradient.view(HEIGHT, WIDTH)) if slots.sparse else gradient)

    first, second, third = (drawn(seed, ELEMENTS) for seed in (1, 2, 3))
    start = shard.values.clone()
    push(2, first)
    after_first = start - 0.05 * first
    torch.testing.assert_close(shard.values, after_first, msg="who was sent nothing is not compensated")
    shard.sent(1)
    push(2, second)
    after_second = after_first - 0.05 * second
    push(1, third)
    compensated = third + 0.5 * third * third * (after_second - after_first)
    torch.testing.assert_close(shard.values, after_second - 0.05 * compensated)


def test_of_a_table_rows_are_sent_by_themselves() -> None:
    slots = Slots("sgd of a table")
    shard = slots.shard(Server(compensate=0.5), (1, 2))
    shard.sent(1)
    start = shard.values.clone().view(HEIGHT, WIDTH)
    ones, rows = torch.ones(2, WIDTH), torch.tensor([3, 8])
    shard.push(slots.push(2, 1), Rows(rows, ones))
    shard.sent(1, torch.tensor([8]))
    shard.push(slots.push(1, 1, 1), Rows(rows, ones))
    expected = start.clone()
    expected[3] -= 0.05 + 0.05 * (1 - 0.5 * 0.05)
    expected[8] -= 0.05 + 0.05
    torch.testing.assert_close(shard.values.view(HEIGHT, WIDTH), expected)


# -- whatever the staleness ----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(data=st.data(), staleness=st.sampled_from([None, 1, 3]))
def test_the_histogram_of_staleness_is_what_the_history_says(data: st.DataObject, staleness: int | None) -> None:
    slots, uids = Slots(), (1, 2, 3)
    shard = slots.shard(Server(staleness), uids)
    have, history = dict.fromkeys(uids, 0), []
    for _ in range(data.draw(st.integers(0, 30))):
        uid = data.draw(st.sampled_from(uids))
        shard.push(slots.push(uid, shard.clocks[uid] + 1, have[uid]), drawn(1, ELEMENTS))
        history.append((uid, have[uid]))
        if data.draw(st.booleans()):
            have[uid] = shard.version
    between = [sum(1 for _ in history[version:at]) for at, (_, version) in enumerate(history)]
    assert shard.staleness == Counter(between)
    assert shard.version == len(history)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_rows_of_a_table_that_changed_are_those_that_were_pushed(data: st.DataObject) -> None:
    slots = Slots("adagrad of a table")
    shard = slots.shard(Server(), (1,))
    history = data.draw(st.lists(st.sets(st.integers(0, HEIGHT - 1)), max_size=8))
    for clock, rows in enumerate(history, 1):
        found = torch.tensor(sorted(rows), dtype=torch.int64)
        shard.push(slots.push(1, clock, clock - 1), Rows(found, drawn(clock, len(found), WIDTH)))
    for version in range(len(history) + 1):
        assert shard.rows_since(version).tolist() == sorted(set().union(*history[version:]))


@pytest.mark.parametrize("kind", ["adam", "adagrad of a table"])
@pytest.mark.parametrize("server", [Server(0), Server(2), Server(), Server(compensate=0.1, damped=True)], ids=str)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_repeat_is_applied_once(kind: str, server: Server, data: st.DataObject) -> None:
    slots = Slots(kind)
    once, often = slots.shard(server, (1, 2)), slots.shard(server, (1, 2))
    seen: list[tuple[Push, Tensor | Rows]] = []
    for clock in range(1, 5):
        for uid in data.draw(st.permutations([1, 2])):
            push, update = slots.push(uid, clock, once.version), slots.update(uid, clock)
            assert once.push(push, update)
            assert often.push(push, update)
            seen.append((push, update))
            for again in data.draw(st.lists(st.sampled_from(seen), max_size=3)):
                assert not often.push(*again)
    assert torch.equal(bits(once), bits(often))


@pytest.mark.parametrize("kind", ["momentum", "adam", "nadam", "adagrad", "sparse_adam of a table"])
@pytest.mark.parametrize("server", [Server(0), Server(2), Server(compensate=0.1)], ids=str)
def test_a_copy_from_its_bytes_goes_on_bit_for_bit_in_the_middle_of_a_clock_too(kind: str, server: Server) -> None:
    slots, members = Slots(kind), (4, 2, 3)
    shard = slots.shard(server, members)

    def tell(one: Shard, moves: range) -> None:
        for number in moves:
            uid, clock = members[number % 3], 1 + number // 3
            one.push(slots.push(uid, clock, (clock - 1) * (1 if server.staleness == 0 else 3)), slots.update(number))
            if server.compensate:
                one.sent(uid, torch.arange(number % HEIGHT) if slots.sparse and number > 3 else None)

    tell(shard, range(7))
    if server.staleness != 0:
        shard.pause(3)
    copy = slots.shard(server)
    memory = packed(shard.state())
    copy.load(unpack(memory))
    assert torch.equal(bits(copy), memory)
    memory.zero_()
    for one in shard, copy:
        tell(one, range(7, 15))
    assert shard.version == (5 if server.staleness == 0 else 15)
    assert torch.equal(bits(shard), bits(copy))


def test_a_copy_keeps_no_step_back() -> None:
    slots = Slots("adam")
    shard, other = slots.shard(Server(0), (1,)), slots.shard(Server(0), (1,))
    for one in shard, other:
        one.push(slots.push(1, 1), drawn(1, ELEMENTS))
    shard.load(other.state())
    with pytest.raises(ProtocolError, match="no step back"):
        shard.settle(0)


@pytest.mark.parametrize("server", [Server(0), Server(), Server(compensate=0.1)], ids=str)
def test_an_update_is_not_held_after_its_push(server: Server) -> None:
    slots = Slots("momentum")
    shard = slots.shard(server, (1, 2))
    for uid in (1, 2):
        shard.sent(uid)
        update = drawn(uid, ELEMENTS)
        gone = weakref.ref(update)
        shard.push(slots.push(uid, 1), update)
        del update
        assert gone() is None


def test_values_in_memory_that_was_left_stay_as_they_were() -> None:
    slots = Slots("adam")
    shard, other = slots.shard(Server(), (1,)), slots.shard(Server(), (1,))
    for clock in range(1, 6):
        sent, was = shard.values, shard.values.clone()
        shard.move(torch.empty(ELEMENTS) if clock % 2 else None)
        for one in shard, other:
            one.push(slots.push(1, clock, clock - 1), drawn(clock, ELEMENTS))
        assert torch.equal(sent, was)
        assert torch.equal(shard.values, other.values)


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "update", "words"),
    [
        ("sgd", drawn(0, 59), "agent 1 pushed 59 elements to slot 0, which has 60; is its model another?"),
        ("sgd", drawn(0, 60).double(), "agent 1 pushed torch.float64 to slot 0, which is torch.float32"),
        ("sgd", Rows(torch.tensor([0]), drawn(0, 1, 5)), "agent 1 pushed rows to slot 0, which is no table"),
        ("sgd of a table", drawn(0, 60), "agent 1 pushed a whole gradient to slot 0, which is of a table"),
        ("sgd of a table", Rows(torch.tensor([0]), drawn(0, 1, 4)), "whose rows have 5 elements"),
        ("sgd of a table", Rows(torch.tensor([0]), drawn(0, 2, 5)), "values [2, 5] of rows [1]"),
        ("sgd of a table", Rows(torch.tensor([3, 12]), drawn(0, 2, 5)), "each once, from 0 to 11"),
        ("sgd of a table", Rows(torch.tensor([-1, 2]), drawn(0, 2, 5)), "each once, from 0 to 11"),
        ("sgd of a table", Rows(torch.tensor([2, 2]), drawn(0, 2, 5)), "each once, from 0 to 11"),
        ("sgd of a table", Rows(torch.tensor([3, 2]), drawn(0, 2, 5)), "each once, from 0 to 11"),
    ],
)
@pytest.mark.parametrize("staleness", [0, None])
def test_an_update_that_is_not_of_the_slot_is_refused_and_changes_nothing(
    kind: str, update: Any, words: str, staleness: int | None
) -> None:
    slots = Slots(kind)
    shard = slots.shard(Server(staleness), (1,))
    was = bits(shard).clone()
    with pytest.raises(ProtocolError, match=re.escape(words)):
        shard.push(slots.push(1, 1), update)
    assert torch.equal(bits(shard), was)


@pytest.mark.parametrize(
    ("push", "words"),
    [
        ({"uid": 7}, "agent 7 pushed to slot 0 and is no member: (1, 2)"),
        ({"have": 3}, "computed with version 3 of slot 0, which is at 0"),
        ({"clock": 2}, "agent 1 pushed clock 2 to slot 0, where clock 1 is next"),
        ({"hyper": torch.zeros(3, dtype=torch.float64)}, "agent 1 pushed 3 numbers"),
    ],
)
def test_a_push_that_cannot_be_is_refused(push: dict[str, Any], words: str) -> None:
    slots = Slots()
    shard = slots.shard(Server(0), (1, 2))
    told = {"uid": 1, "clock": 1, "have": 0, "weight": 1.0, "hyper": slots.rule.hyper(slots.optimizer)}
    with pytest.raises(ProtocolError, match=re.escape(words)):
        shard.push(Push(**(told | push)), drawn(1, ELEMENTS))


def test_a_copy_of_another_slot_is_refused() -> None:
    slots = Slots()
    (other,) = plan_slots([Extent("float32", ((8, 0),))])
    small = Shard(other, Server(), slots.rule, drawn(0, 8))
    with pytest.raises(ProtocolError, match="slot 0 has 8 elements, and was given 60"):
        small.load(slots.shard(Server(), (1,)).state())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"staleness": -1}, "staleness counts steps"),
        ({"staleness": 1.5}, "staleness counts steps"),
        ({"compensate": -0.1}, "0.04 is usual"),
        ({"staleness": 0, "damped": True}, "leave damped out"),
        ({"staleness": 0, "compensate": 0.1}, "leave compensate out"),
        ({"replicas": -1}, "2 survives a death"),
        ({"slot": -1}, "slot is a size in bytes"),
    ],
)
def test_a_server_that_cannot_be_says_what_would_do(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Server(**values)


@pytest.mark.parametrize("server", [Server(), Server(0), Server(4, damped=True, pull=Int8(), replicas=3, slot=1 << 20)])
def test_a_server_is_its_text(server: Server) -> None:
    assert parse(str(server), "exchange") == server
