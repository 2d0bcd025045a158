"""How a slot's values are stepped: by PyTorch's own optimizers, over ranges of parameters.

Theory of operation. An optimizer whose step of an element needs nothing of the other elements can step any range of a
parameter by itself. A :class:`Rule` says which optimizer it is, in plain values; its numbers (learning rates, …) are of
the agent that pushes, and travel with each push, so that schedulers work. A :class:`Stepper` is that optimizer over the
memory of one slot. It is cut into ranges so short that malloc keeps what a step takes for a while: a step of Adam over
4 MiB at once has its memory from the system, and takes some ten times as long, most of it for 2,000 fresh pages.

In float32 and float64 an element has the same bits however its slot is cut. In 16 bits it does not: PyTorch rounds the
last elements of a range, that fill no vector, otherwise. Nor with ``fused=True``, which is kept where it was asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch
from torch import Tensor

from stretto.errors import UsageError
from stretto.server.update import Rows, Update

if TYPE_CHECKING:
    from stretto.server.space import Slot

DENSE: Final = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta")
TABLES: Final = ("SGD", "Adagrad", "SparseAdam")

_RANGE: Final = 256 << 10
_MADE_WITH: Final = ("initial_accumulator_value",)
"""Numbers that count once, when a state begins."""
_HOW: Final = ("foreach", "capturable", "differentiable")
"""Options that say how an optimizer computes, and not what."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which optimizer: its class in ``torch.optim``, its options, the names of its numbers, its count of groups."""

    name: str
    flags: dict[str, bool | float]
    numbers: tuple[str, ...]
    groups: int

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> Rule:
        """The rule of an agent's own optimizer.

        Raises:
            UsageError: it cannot step a range of a parameter alone, or its param groups differ in an option.

        >>> Rule.of(torch.optim.Adam([torch.zeros(2)])).numbers
        ('lr', 'betas.0', 'betas.1', 'eps', 'weight_decay')
        """
        kind = type(optimizer)
        if kind.__name__ not in {*DENSE, *TABLES} or getattr(torch.optim, kind.__name__, None) is not kind:
            raise UsageError(
                f"a server cannot step with {kind.__module__}.{kind.__qualname__}: it must be able to step a part of a "
                f"parameter alone; take {', '.join(DENSE)} of torch.optim, or SparseAdam for tables, or allreduce()"
            )
        told = {key: value for key, value in optimizer.defaults.items() if key not in _HOW}
        options = [key for key, value in told.items() if value is None or isinstance(value, bool) or key in _MADE_WITH]
        numbers = [name for key, value in told.items() if key not in options for name in _names(key, value)]
        flags, *others = [_flags(options, group) for group in optimizer.param_groups]
        for number, other in enumerate(others, 1):
            for key, value in flags.items() - other.items():
                raise UsageError(
                    f"param group {number} has {key}={other[key]} and group 0 has {value}: with a server they must "
                    "be equal in it; numbers such as lr and weight_decay may differ"
                )
        return cls(kind.__name__, flags, tuple(numbers), len(optimizer.param_groups))

    def hyper(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """The optimizer's numbers as they are now: float64 [groups * numbers], what a push carries."""
        found: list[float] = []
        for group in optimizer.param_groups:
            for name in self.numbers:
                key, _, place = name.partition(".")
                found.append(float(group[key][int(place)] if place else group[key]))
        return torch.tensor(found, dtype=torch.float64)

    def check(self, slot: Slot, hyper: Tensor) -> None:
        """That ``slot`` can be stepped with these numbers.

        Raises:
            UsageError: it is of a table, and the optimizer knows no sparse gradients, or not with these; or it is none,
                and the optimizer knows no others.
        """
        if self.name not in (TABLES if slot.width else DENSE):
            what, known = ("a table", TABLES) if slot.width else ("a parameter that is no table", DENSE)
            raise UsageError(f"{self.name} cannot step {what}; take {', '.join(known)}")
        for number in {piece.group for piece in slot.pieces} if slot.width else ():
            group = self.group(hyper, number)
            for key in ("momentum", "weight_decay"):
                if group.get(key):
                    raise UsageError(
                        f"{self.name} cannot step a table with {key}={group[key]}, which would change all of its rows; "
                        f"give tables a param group with {key}=0"
                    )

    def group(self, hyper: Tensor, number: int) -> dict[str, Any]:
        """The numbers of one param group, by their names there."""
        found: dict[str, Any] = {}
        width = len(self.numbers)
        for name, value in zip(self.numbers, hyper[number * width : (number + 1) * width].tolist(), strict=True):
            key, _, place = name.partition(".")
            found[key] = (*found.get(key, ()), value) if place else value
        return found

    def over(self, slot: Slot, values: Tensor) -> Stepper:
        """This optimizer over ``values``, the memory of a slot (flat); they change in place."""
        return Stepper(self, slot, values)


def _names(key: str, value: Any) -> list[str]:
    return [f"{key}.{place}" for place in range(len(value))] if isinstance(value, tuple) else [key]


def _flags(options: Sequence[str], group: dict[str, Any]) -> dict[str, bool | float]:
    return {key: float(group[key]) if key in _MADE_WITH else bool(group[key]) for key in options}


def _bare(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The class without what guards it from torch.compile: to import that takes 1.3 s and 70 MB, of every courier.

    Nor is its step called through its wrapper of hooks and profiling, which takes longer than a small slot's step.
    """
    return type(kind.__name__, (kind,), {"add_param_group": inspect.unwrap(kind.add_param_group)})


class Stepper:
    """One optimizer over the values of one slot."""

    def __init__(self, rule: Rule, slot: Slot, values: Tensor) -> None:
        self.rule, self.slot = rule, slot
        self._ranges: list[tuple[int, int]] = []
        self.params: list[Tensor] = []
        self._numbers = sorted({piece.group for piece in slot.pieces})
        # The numbers come with the first push.
        options = rule.flags | {"foreach": False, "fused": rule.flags.get("fused", False) and not slot.width}
        groups = [{"params": self._cut(number, values), **options} for number in self._numbers]
        made_with = {key: value for key, value in rule.flags.items() if key in _MADE_WITH}
        kind: Any = _bare(getattr(torch.optim, rule.name))
        self.optimizer: torch.optim.Optimizer = kind(groups, **made_with)
        self._step = inspect.unwrap(kind.step)
        self._tuned: tuple[Tensor, float] | None = None

    def step(self, update: Update, hyper: Tensor, scale: float) -> None:
        """One step with the gradient ``update``, which is not written; learning rates count ``scale`` times.

        Raises:
            UsageError: a table cannot be stepped with them.
        """
        self._tune(hyper, scale)
        if isinstance(update, Rows):
            self._sparse(update)
        else:
            for p, (start, stop) in zip(self.params, self._ranges, strict=True):
                p.grad = update[start:stop]
            with torch.no_grad():
                self._step(self.optimizer)
        for p in self.params:
            p.grad = None

    def state(self) -> list[dict[str, Any]]:
        """What the optimizer remembers, by range, in plain values; the tensors are those that are written."""
        return [dict(self.optimizer.state[p]) for p in self.params]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Go on from there; tensors are copied."""
        for p, found in zip(self.params, state, strict=True):
            self.optimizer.state[p] = {k: x.clone() if isinstance(x, Tensor) else x for k, x in found.items()}

    def move(self, values: Tensor) -> None:
        """Step in this memory from now on, which holds the same values."""
        for p, (start, stop) in zip(self.params, self._ranges, strict=True):
            p.data = self._view(values, start, stop)

    def _sparse(self, update: Rows) -> None:
        (table,) = self.params
        # Whoever made the rows has checked them.
        with torch.no_grad(), torch.sparse.check_sparse_tensor_invariants(enable=False):
            table.grad = torch.sparse_coo_tensor(update.rows[None], update.values, table.shape, is_coalesced=True)
            self._step(self.optimizer)

    def _cut(self, group: int, values: Tensor) -> list[Tensor]:
        length = self.slot.elements if self.slot.width else _RANGE // values.itemsize
        found = []
        for piece in self.slot.pieces:
            for start in range(piece.start, piece.stop, length) if piece.group == group else ():
                self._ranges.append((start, min(start + length, piece.stop)))
                found.append(self._view(values, *self._ranges[-1]))
        self.params += found
        return found

    def _view(self, values: Tensor, start: int, stop: int) -> Tensor:
        found = values.detach()[start:stop]
        return found.view(-1, self.slot.width) if self.slot.width else found

    def _tune(self, hyper: Tensor, scale: float) -> None:
        if self._tuned is not None and scale == self._tuned[1] and torch.equal(hyper, self._tuned[0]):
            return
        self.rule.check(self.slot, hyper)
        for number, group in zip(self._numbers, self.optimizer.param_groups, strict=True):
            group.update(self.rule.group(hyper, number))
            group["lr"] *= scale
        self._tuned = hyper.clone(), scale
