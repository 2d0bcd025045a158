"""PyTorch's own optimizers over the memory of one slot.

Theory of operation. It is cut into ranges so short that malloc keeps what a step takes for a while: a step of Adam over
4 MiB at once has its memory from the system, and takes some ten times as long, most of it for 2,000 fresh pages.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from stretto.server.update import Rows, Update

if TYPE_CHECKING:
    from stretto.server.rules import Rule
    from stretto.server.space import Slot

MADE_WITH: Final = ("initial_accumulator_value",)
"""Numbers that count once, when a state begins."""
_RANGE: Final = 256 << 10


def _bare(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The class without what guards it from torch.compile: to import that takes 1.3 s and 70 MB, of every courier.

    Nor is its step called through its wrapper of hooks and profiling, which takes longer than a small slot's step.
    """
    return type(kind.__name__, (kind,), {"add_param_group": inspect.unwrap(kind.add_param_group)})


class OptimizerStepper:
    """One optimizer over the values of one slot."""

    def __init__(self, rule: Rule, slot: Slot, values: Tensor) -> None:
        self.rule, self.slot = rule, slot
        self._ranges: list[tuple[int, int]] = []
        self.params: list[Tensor] = []
        self._numbers = sorted({piece.group for piece in slot.pieces})
        # The numbers come with the first push.
        options = rule.flags | {"foreach": False, "fused": rule.flags.get("fused", False) and not slot.width}
        groups = [{"params": self._cut(number, values), **options} for number in self._numbers]
        made_with = {key: value for key, value in rule.flags.items() if key in MADE_WITH}
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

    def memory(self, p: Tensor) -> dict[str, Any]:
        """What the optimizer remembers of one of ``params``; it is changed in place."""
        found: dict[str, Any] = self.optimizer.state[p]
        return found

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
