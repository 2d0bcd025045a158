"""How a slot's values are stepped: by PyTorch's own optimizers, over ranges of parameters; or by an outer one.

Theory of operation. An optimizer whose step of an element needs nothing of the other elements can step any range of a
parameter by itself. A :class:`Rule` says which optimizer it is, in plain values; its numbers (learning rates, …) are of
the agent that pushes, and travel with each push, so that schedulers work. A :class:`Stepper` is that optimizer over the
memory of one slot. Where agents push drifts, it is an outer optimizer, whose numbers are part of its text.

In float32 and float64 an element has the same bits however its slot is cut. In 16 bits it does not: PyTorch rounds the
last elements of a range, that fill no vector, otherwise. Nor with ``fused=True``, which is kept where it was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import torch
from torch import Tensor

from stretto.core import Outer
from stretto.errors import UsageError
from stretto.server.optimizer_step import MADE_WITH, OptimizerStepper
from stretto.server.outer_step import OuterStepper
from stretto.server.update import Update

if TYPE_CHECKING:
    from stretto.server.space import Slot

DENSE: Final = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta")
TABLES: Final = ("SGD", "Adagrad", "SparseAdam")

_HOW: Final = ("foreach", "capturable", "differentiable")
"""Options that say how an optimizer computes, and not what."""


class Stepper(Protocol):
    """One optimizer over the values of one slot. ``params`` are views of these, whole or in ranges."""

    params: list[Tensor]

    def step(self, update: Update, hyper: Tensor, scale: float) -> None:
        """One step with ``update``, which is not written; it counts ``scale`` times.

        Raises:
            UsageError: with these numbers that cannot be.
        """
        ...

    def memory(self, p: Tensor) -> dict[str, Any]:
        """What is remembered of one of ``params``; it is changed in place."""
        ...

    def state(self) -> list[dict[str, Any]]:
        """What is remembered, by range, in plain values; the tensors are those that are written."""
        ...

    def load(self, state: list[dict[str, Any]]) -> None:
        """Go on from there; tensors are copied."""
        ...

    def move(self, values: Tensor) -> None:
        """Step in this memory from now on, which holds the same values."""
        ...


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which optimizer: its class in ``torch.optim``, its options, the names of its numbers, its count of groups.

    ``outer``: ``name`` is an outer optimizer's text.
    """

    name: str
    flags: dict[str, bool | float]
    numbers: tuple[str, ...]
    groups: int
    outer: bool = False

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
        options = [key for key, value in told.items() if value is None or isinstance(value, bool) or key in MADE_WITH]
        numbers = [name for key, value in told.items() if key not in options for name in _names(key, value)]
        flags, *others = [_flags(options, group) for group in optimizer.param_groups]
        for number, other in enumerate(others, 1):
            for key, value in flags.items() - other.items():
                raise UsageError(
                    f"param group {number} has {key}={other[key]} and group 0 has {value}: with a server they must "
                    "be equal in it; numbers such as lr and weight_decay may differ"
                )
        return cls(kind.__name__, flags, tuple(numbers), len(optimizer.param_groups))

    @classmethod
    def landing(cls, outer: Outer) -> Rule:
        """The rule by which drifts land; with each push comes how many windows its agent trained.

        >>> from stretto.outers import Nesterov
        >>> Rule.landing(Nesterov(0.7)).name
        'nesterov'
        """
        return cls(str(outer), {}, ("windows",), 1, outer=True)

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
        return OuterStepper(self.name, values) if self.outer else OptimizerStepper(self, slot, values)


def _names(key: str, value: Any) -> list[str]:
    return [f"{key}.{place}" for place in range(len(value))] if isinstance(value, tuple) else [key]


def _flags(options: Sequence[str], group: dict[str, Any]) -> dict[str, bool | float]:
    return {key: float(group[key]) if key in MADE_WITH else bool(group[key]) for key in options}
