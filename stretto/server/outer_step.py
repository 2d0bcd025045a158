"""An outer optimizer over the memory of one slot, to which agents push what they drifted by, each when it comes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stretto.core import Outer
from stretto.errors import UsageError
from stretto.server.update import Rows, Update
from stretto.text import parse


class OuterStepper:
    """The outer optimizer with that text.

    A drift of ``w`` windows is w times the mean of these, so it lands as ``w scale`` of a round with ``drift / w``:
    whoever stops in the middle of a window moves values by all that it found, and brings the round's end as much nearer
    as it trained. On arrival ``scale`` is 1/n (:mod:`stretto.server.shard`): the windows of n agents are one round.
    """

    def __init__(self, text: str, values: Tensor) -> None:
        self.params = [values.detach()]
        self._outer: Outer = parse(text, "outer")
        self._memory: dict[str, Any] = {"remembered": [self._outer.init(values)]}

    def step(self, update: Update, hyper: Tensor, scale: float) -> None:
        """Land a drift of ``hyper`` windows, which is not written.

        Raises:
            UsageError: it is of no windows, or of rows.
        """
        windows = float(hyper[0])
        if isinstance(update, Rows) or not 0 < windows < float("inf"):
            raise UsageError(f"a drift of {windows} windows cannot land: it must be of more than none, and whole")
        drift = update if windows == 1 else update / windows
        with torch.no_grad():
            move, remembered = self._outer.update(drift, self._memory["remembered"][0], windows * scale)
            self.params[0].sub_(move)
        self._memory["remembered"] = [remembered]

    def memory(self, p: Tensor) -> dict[str, Any]:
        """What the outer optimizer remembers: in a list, since it never changes that in place."""
        return self._memory

    def state(self) -> list[dict[str, Any]]:
        return [dict(self._memory)]

    def load(self, state: list[dict[str, Any]]) -> None:
        (found,) = state
        self._memory = {"remembered": [_copied(found["remembered"][0])]}

    def move(self, values: Tensor) -> None:
        self.params = [values.detach()]


def _copied(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _copied(value) for key, value in x.items()}
    return x.clone() if isinstance(x, Tensor) else x
