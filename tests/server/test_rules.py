"""A slot's step is PyTorch's own: cut anywhere, with each group's numbers, sparse where it can be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stretto.server import Piece, Rule, Slot

O = torch.optim  # noqa: E741
KINDS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (O.SGD, {"lr": 0.1}),
    "momentum": (O.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "nesterov": (O.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adam": (O.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "amsgrad": (O.Adam, {"lr": 0.01, "amsgrad": True}),
    "adamw": (O.AdamW, {"lr": 0.01, "betas": (0.8, 0.95)}),
    "nadam": (O.NAdam, {"lr": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.1}),
    "radam": (O.RAdam, {"lr": 0.01}),
    "adamax": (O.Adamax, {"lr": 0.01}),
    "rmsprop": (O.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "adagrad": (O.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    "adadelta": (O.Adadelta, {"lr": 1.0}),
}
dense = pytest.mark.parametrize("kind", KINDS)
EVERYTHING = st.integers(0, 2**32)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def cut(elements: int, cuts: Sequence[int], border: int) -> list[Slot]:
    """Slots between ``cuts``, whose elements from ``border`` on are of group 1."""
    found = []
    for number, (start, stop) in enumerate(pairwise([0, *cuts, elements])):
        pieces = [(0, start, min(stop, border)), (1, max(start, border), stop)]
        inside = tuple(Piece(group, first - start, last - start) for group, first, last in pieces if first < last)
        found.append(Slot(number, 0, start, stop, "float32", inside))
    return found


def made(kind: str, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """An optimizer with a group for each parameter, of another lr and weight decay."""
    make, options = KINDS[kind]
    groups = []
    for number, p in enumerate(parameters):
        decay = {"weight_decay": 0.03 * number} if "weight_decay" not in options else {}
        groups.append({"params": [p], "lr": options["lr"] * (1 + number), **decay})
    return make(groups, foreach=False, **options)


def equal(x: Any, y: Any) -> bool:
    return torch.equal(x, y) if isinstance(x, Tensor) else bool(x == y)


@dense
@settings(max_examples=15, deadline=None)
@given(seed=EVERYTHING, data=st.data())
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
        assert torch.equal(gradient, drawn(seed + step + 1, elements))
        optimizer.step()
    assert torch.equal(values, torch.cat(whole))
