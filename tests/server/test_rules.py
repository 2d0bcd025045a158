"""A slot's step is PyTorch's own: cut anywhere, with each group's numbers, and sparse where it can be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slots import DENSE, TABLES, drawn, made, table
from torch import Tensor

from stretto.errors import UsageError
from stretto.server import Extent, Piece, Rows, Rule, Slot, plan_slots
from stretto.state import packed, unpack

dense = pytest.mark.parametrize("kind", DENSE)
tables = pytest.mark.parametrize("kind", TABLES)
seeds = st.integers(0, 2**32)


def cut(elements: int, cuts: Sequence[int], border: int) -> list[Slot]:
    """Slots between ``cuts``, whose elements from ``border`` on are of group 1."""
    found = []
    for number, (start, stop) in enumerate(pairwise([0, *cuts, elements])):
        parts = [(0, start, min(stop, border)), (1, max(start, border), stop)]
        pieces = tuple(Piece(group, first - start, last - start) for group, first, last in parts if first < last)
        found.append(Slot(number, 0, start, stop, "float32", pieces))
    return found


@dense
@settings(max_examples=15, deadline=None)
@given(seed=seeds, data=st.data())
def test_slots_cut_anywhere_and_stepped_alone_are_the_optimizer_over_whole_parameters(
    kind: str, seed: int, data: st.DataObject
) -> None:
    elements = data.draw(st.integers(2, 700))
    border = data.draw(st.integers(1, elements - 1))
    cuts = sorted(data.draw(st.sets(st.integers(1, elements - 1), max_size=4)))
    values = drawn(seed, elements)
    whole = [values[:border].clone(), values[border:].clone()]
    optimizer = made(kind, whole)
    rule = Rule.of(optimizer)
    slots = cut(elements, cuts, border)
    steppers = [rule.over(slot, values[slot.start : slot.stop]) for slot in slots]
    for step in range(4):
        optimizer.param_groups[step % 2]["lr"] *= 0.7
        gradient = drawn(seed + step + 1, elements)
        whole[0].grad, whole[1].grad = gradient[:border].clone(), gradient[border:].clone()
        for slot, stepper in zip(slots, steppers, strict=True):
            stepper.step(gradient[slot.start : slot.stop], rule.hyper(optimizer), 1.0)
        assert torch.equal(gradient, drawn(seed + step + 1, elements)), "an update was written"
        optimizer.step()
    assert torch.equal(values, torch.cat(whole))


@dense
def test_what_is_longer_than_a_range_has_the_same_bits(kind: str) -> None:
    elements = 300_001
    values = drawn(0, elements)
    whole = values.clone()
    optimizer = made(kind, [whole])
    rule = Rule.of(optimizer)
    (slot,) = plan_slots([Extent("float32", ((elements, 0),))], slot=2 << 20)
    stepper = rule.over(slot, values)
    for step in range(2):
        whole.grad = drawn(step + 1, elements)
        stepper.step(whole.grad.clone(), rule.hyper(optimizer), 1.0)
        optimizer.step()
    assert len(stepper.params) == 5
    assert torch.equal(values, whole)


@tables
@settings(max_examples=15, deadline=None)
@given(seed=seeds, data=st.data())
def test_a_table_cut_between_rows_is_the_optimizer_over_the_whole_table(
    kind: str, seed: int, data: st.DataObject
) -> None:
    height, width = data.draw(st.integers(2, 40)), data.draw(st.integers(1, 9))
    border = data.draw(st.integers(1, height - 1))
    values = drawn(seed, height * width)
    whole = values.clone().view(height, width)
    optimizer = made(kind, [whole])
    rule = Rule.of(optimizer)
    slots = [table(0, border, width), table(border, height, width)]
    steppers = [rule.over(slot, values[slot.start : slot.stop]) for slot in slots]
    for step in range(4):
        rows = torch.tensor(sorted(data.draw(st.sets(st.integers(0, height - 1)))), dtype=torch.int64)
        gradient = drawn(seed + step + 1, len(rows), width)
        whole.grad = torch.sparse_coo_tensor(rows[None], gradient, whole.shape, check_invariants=True).coalesce()
        below = int((rows < border).sum())
        for stepper, part, first in zip(steppers, (slice(below), slice(below, None)), (0, border), strict=True):
            stepper.step(Rows(rows[part] - first, gradient[part]), rule.hyper(optimizer), 1.0)
        optimizer.step()
    assert torch.equal(values.view(height, width), whole)


@pytest.mark.parametrize(("kind", "other"), [("sgd", "sgd"), ("adagrad", "adagrad"), ("sparse_adam", "adam_eps")])
def test_rows_become_what_a_dense_optimizer_makes_of_them(kind: str, other: str) -> None:
    values = drawn(0, 12 * 5)
    whole = values.clone().view(12, 5)
    optimizer, dense_one = made(kind, [values]), made(other, [whole])
    rule, rows = Rule.of(optimizer), torch.tensor([1, 4, 11])
    stepper = rule.over(table(0, 12, 5), values)
    for step in range(5):
        gradient = drawn(step + 1, 3, 5)
        whole.grad = torch.zeros(12, 5).index_copy(0, rows, gradient)
        stepper.step(Rows(rows, gradient), rule.hyper(optimizer), 1.0)
        dense_one.step()
    torch.testing.assert_close(values.view(12, 5), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [*DENSE, *(f"{kind} of a table" for kind in TABLES)])
def test_a_stepper_goes_on_bit_for_bit_from_the_bytes_of_another(kind: str) -> None:
    name, _, sparse = kind.partition(" of ")
    slot = table(0, 10, 4) if sparse else cut(40, [], 25)[0]
    values = drawn(0, 40)
    optimizer = made(name, [values] if sparse else [values[:25], values[25:]])
    rule = Rule.of(optimizer)
    rule = msgspec.json.decode(msgspec.json.encode(rule), type=Rule)
    hyper = rule.hyper(optimizer)

    def gradient(step: int) -> Tensor | Rows:
        return Rows(torch.tensor([step, step + 2]), drawn(step, 2, 4)) if sparse else drawn(step, 40)

    one = rule.over(slot, values)
    for step in range(3):
        one.step(gradient(step), hyper, 0.5)
    copied = values.clone()
    other = rule.over(slot, copied)
    other.load(unpack(packed(one.state())))
    for step in range(3, 6):
        one.step(gradient(step), hyper, 0.5)
        other.step(gradient(step), hyper, 0.5)
    assert torch.equal(values, copied)
    assert torch.equal(packed(one.state()), packed(other.state()))


def test_a_step_counts_as_much_as_it_is_said_to() -> None:
    values, gradient = drawn(0, 8), drawn(1, 8)
    optimizer = made("sgd", [values])
    rule = Rule.of(optimizer)
    stepper = rule.over(cut(8, [], 8)[0], values)
    expected, hyper = values.clone(), rule.hyper(optimizer)
    for scale in (1.0, 0.25, 0.25, 1.0):
        stepper.step(gradient, hyper, scale)
        expected -= hyper[0].item() * scale * gradient
        hyper[0] *= 0.5
    torch.testing.assert_close(values, expected)


def test_a_stepper_goes_on_in_other_memory_and_leaves_the_old_as_it_was() -> None:
    values, gradient = drawn(0, 40), drawn(1, 40)
    alone = values.clone()
    optimizer = made("adam", [values[:25], values[25:]])
    rule = Rule.of(optimizer)
    slot = cut(40, [], 25)[0]
    one, other = rule.over(slot, values), rule.over(slot, alone)
    one.step(gradient, rule.hyper(optimizer), 1.0)
    moved = values.clone()
    one.move(moved)
    one.step(gradient, rule.hyper(optimizer), 1.0)
    other.step(gradient, rule.hyper(optimizer), 1.0)
    assert torch.equal(values, alone)
    other.step(gradient, rule.hyper(optimizer), 1.0)
    assert torch.equal(moved, alone)


@pytest.mark.parametrize("kind", ["momentum", "adam", "adamw"])
def test_who_asks_for_fused_steps_gets_them(kind: str) -> None:
    values = drawn(0, 1000)
    whole = values.clone()
    optimizer = made(kind, [whole], foreach=None, fused=True)
    rule = Rule.of(optimizer)
    stepper = rule.over(cut(1000, [], 1000)[0], values)
    for step in range(3):
        whole.grad = drawn(step + 1, 1000)
        stepper.step(whole.grad.clone(), rule.hyper(optimizer), 1.0)
        optimizer.step()
    assert torch.equal(values, whole)


def test_stepping_does_not_load_the_compiler() -> None:
    script = """if True:
        import sys, torch
        from stretto.server import Extent, Rule, plan_slots
        from stretto.server.rules import DENSE
        for name in DENSE:
            rule = Rule(name, {}, ("lr",), 1)
            (slot,) = plan_slots([Extent("float32", ((8, 0),))])
            rule.over(slot, torch.zeros(8)).step(torch.ones(8), torch.ones(1, dtype=torch.float64), 1.0)
        print("torch._dynamo" in sys.modules)
    """
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_how_an_optimizer_computes_is_no_part_of_its_rule() -> None:
    assert Rule.of(made("adam", [drawn(0, 1)], foreach=True)) == Rule.of(made("adam", [drawn(0, 1)], foreach=None))


def test_numbers_are_asked_for_as_they_are_now_a_tensor_too() -> None:
    optimizer = torch.optim.Adam([drawn(0, 1)], lr=torch.tensor(0.5), foreach=False, capturable=False)
    rule = Rule.of(optimizer)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    optimizer.param_groups[0]["initial_lr"] = 0.5
    assert dict(zip(rule.numbers, rule.hyper(optimizer).tolist(), strict=True)) == {
        "lr": 0.25,
        "betas.0": 0.9,
        "betas.1": 0.999,
        "eps": 1e-8,
        "weight_decay": 0,
    }


class _Own(torch.optim.SGD):
    pass


@pytest.mark.parametrize("make", [torch.optim.LBFGS, torch.optim.Rprop, torch.optim.ASGD, torch.optim.Adafactor, _Own])
def test_an_optimizer_that_needs_more_than_a_range_is_refused_with_those_that_do_not(make: Any) -> None:
    with pytest.raises(UsageError, match=f"{make.__name__}.*take SGD, Adam, AdamW"):
        Rule.of(make([drawn(0, 3, 3).requires_grad_()]))


def test_groups_that_differ_in_an_option_are_refused() -> None:
    groups = [{"params": [drawn(0, 1)]}, {"params": [drawn(1, 1)], "amsgrad": True}]
    with pytest.raises(UsageError, match="group 1 has amsgrad=True and group 0 has False"):
        Rule.of(torch.optim.Adam(groups))


@pytest.mark.parametrize(
    ("make", "width", "words"),
    [
        (torch.optim.Adam, 4, "Adam cannot step a table; take SGD, Adagrad, SparseAdam"),
        (lambda p: torch.optim.SGD(p, momentum=0.9), 4, "momentum=0.9"),
        (lambda p: torch.optim.Adagrad(p, weight_decay=0.1), 4, "weight_decay=0.1.*a param group with weight_decay=0"),
        (torch.optim.SparseAdam, 0, "SparseAdam cannot step a parameter that is no table"),
    ],
)
def test_what_cannot_step_a_slot_is_refused_before_it_does(make: Any, width: int, words: str) -> None:
    optimizer = make([drawn(0, 40)])
    rule = Rule.of(optimizer)
    slot = table(0, 10, 4) if width else cut(40, [], 40)[0]
    with pytest.raises(UsageError, match=words):
        rule.check(slot, rule.hyper(optimizer))
    with pytest.raises(UsageError, match=words):
        rule.over(slot, drawn(0, 40)).step(
            Rows(torch.tensor([0]), drawn(0, 1, 4)) if width else drawn(0, 40), rule.hyper(optimizer), 1.0
        )
