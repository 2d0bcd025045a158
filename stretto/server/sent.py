"""Delay compensation: what a gradient would be at the values of now, from those that it was computed with.

Zheng et al.: Asynchronous Stochastic Gradient Descent with Delay Compensation, ICML 2017 (arXiv 1609.08326), equation
10: g + lambda g * g * (w - w_have), where w_have is what the agent was sent last. So that is kept, for each agent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stretto.server.update import Rows, Update


class Sent:
    """What each agent was sent last, of one slot's values [elements] or [rows, width]."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.values: dict[int, Tensor] = {}
        self._room: Tensor | None = None

    def note(self, uid: int, values: Tensor, rows: Tensor | None = None) -> None:
        """They are sent to ``uid`` now, or only these ``rows`` of them."""
        known = self.values.get(uid)
        if known is None:
            self.values[uid] = values.clone()
        elif rows is None:
            known.copy_(values)
        else:
            known[rows] = values[rows]

    def keep(self, uids: tuple[int, ...]) -> None:
        """Nobody else is there any more."""
        self.values = {uid: x for uid, x in self.values.items() if uid in uids}

    def compensated(self, uid: int, update: Update, values: Tensor) -> Update:
        """``update`` as it would be at ``values``; the memory is used again the next time."""
        have = self.values.get(uid)
        if have is None:
            return update
        if isinstance(update, Rows):
            moved = values[update.rows] - have[update.rows]
            return Rows(
                update.rows, torch.addcmul(update.values, update.values, moved.mul_(update.values), value=self.rate)
            )
        if self._room is None:
            self._room = torch.empty_like(values)
        moved = torch.sub(values, have, out=self._room).mul_(update)
        return torch.addcmul(update, update, moved, value=self.rate, out=self._room)
