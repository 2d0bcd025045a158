"""The step before: what a step is about to change is kept, so that it can be taken back, to the bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stretto.server.rules import Stepper
from stretto.server.update import Rows, Update


class Before:
    """What one :class:`Stepper` held before its last step. Of a table only the rows that were stepped are kept.

    ``changed``: one number a row, which goes back, too.
    """

    def __init__(self, stepper: Stepper, changed: Tensor) -> None:
        self._stepper = stepper
        self._changed = changed
        self._numbers = changed
        self._rows: Tensor | None = None
        self._values: list[Tensor | None] = [None] * len(stepper.params)
        self._states: list[dict[str, Any]] = [{} for _ in stepper.params]

    def keep(self, update: Update) -> None:
        """Call before the step with ``update``; the memory of the last time is used again."""
        self._rows = None
        if isinstance(update, Rows):
            self._rows = update.rows.clone()
            self._numbers = self._changed[self._rows]
        for at, p in enumerate(self._stepper.params):
            self._values[at] = self._kept(p, p, self._values[at])
            had = self._states[at]
            now = self._stepper.memory(p)
            self._states[at] = {key: self._kept(x, p, had.get(key)) for key, x in now.items()}

    def restore(self) -> None:
        """Hold that again."""
        if self._rows is not None:
            self._changed[self._rows] = self._numbers
        for p, values, state in zip(self._stepper.params, self._values, self._states, strict=True):
            assert values is not None
            self._put(values, p, p)
            now = self._stepper.memory(p)
            for key in list(now):
                if key not in state:
                    del now[key]
                elif isinstance(now[key], Tensor):
                    self._put(state[key], now[key], p)
                else:
                    now[key] = state[key]

    def _kept(self, x: Any, p: Tensor, room: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if self._rows is not None and x.shape == p.shape:
            return x[self._rows]
        if isinstance(room, Tensor) and room.shape == x.shape:
            return room.copy_(x)
        return x.clone()

    def _put(self, kept: Tensor, x: Tensor, p: Tensor) -> None:
        with torch.no_grad():
            if self._rows is not None and x.shape == p.shape:
                x[self._rows] = kept
            else:
                x.copy_(kept)
