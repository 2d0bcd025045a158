"""Pushes of one clock, kept until all that are waited for are there; and their mean."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stretto.server.update import Push, Rows, Update


class Waiting:
    """The pushes to one slot that wait, by uid. Memory is used again: what each needs, and the mean."""

    def __init__(self) -> None:
        self._pushes: dict[int, tuple[Push, Update]] = {}
        self._owned: set[int] = set()
        self._free: list[Tensor] = []

    def __contains__(self, uid: int) -> bool:
        return uid in self._pushes

    def __len__(self) -> int:
        return len(self._pushes)

    def add(self, push: Push, update: Update) -> None:
        """It waits where it lies; for longer than the caller's call only after :meth:`own`."""
        self._pushes[push.uid] = push, update

    def own(self, uid: int) -> None:
        """What was added last is copied."""
        push, update = self._pushes[uid]
        if isinstance(update, Rows):
            mine: Update = Rows(update.rows.clone(), update.values.clone())
        else:
            mine = self._room(update).copy_(update)
        self._pushes[uid] = replace(push, hyper=push.hyper.clone()), mine
        self._owned.add(uid)

    def forget(self, uids: Collection[int]) -> None:
        """These wait no more."""
        for uid in self._pushes.keys() & uids:
            _, update = self._pushes.pop(uid)
            if uid in self._owned and isinstance(update, Tensor):
                self._free.append(update)
            self._owned.discard(uid)

    def mean(self, members: Sequence[int]) -> tuple[list[Push], Update]:
        """The pushes in the order of ``members``, and the sum of weight times update, in that order, over their count.

        It may lie in memory that the next push is copied to.
        """
        found = [self._pushes[uid] for uid in members if uid in self._pushes]
        pushes = [push for push, _ in found]
        weights, updates = [push.weight for push in pushes], [update for _, update in found]
        if len(members) == 1 and weights == [1]:
            return pushes, updates[0]
        flat = [x for x in updates if isinstance(x, Tensor)]
        if not flat:
            return pushes, _mean_rows(weights, [x for x in updates if isinstance(x, Rows)], len(members))
        room = self._room(flat[0])
        self._free.append(room)
        return pushes, _mean(weights, flat, len(members), room)

    def state(self) -> list[dict[str, Any]]:
        """What waits, in plain values."""
        return [_plain(push, update) for push, update in self._pushes.values()]

    def load(self, state: list[dict[str, Any]]) -> None:
        """What waits is this; tensors are copied."""
        self.forget(list(self._pushes))
        for found in state:
            push, update = _read(**found)
            self.add(push, update)
            self.own(push.uid)

    def _room(self, like: Tensor) -> Tensor:
        return self._free.pop() if self._free else torch.empty_like(like)


def _mean(weights: Sequence[float], updates: Sequence[Tensor], count: int, room: Tensor) -> Tensor:
    total = updates[0] if weights[0] == 1 else torch.mul(updates[0], weights[0], out=room)
    for weight, x in zip(weights[1:], updates[1:], strict=True):
        total = torch.add(total, x if weight == 1 else x * weight, out=room)  # (rounded as in an average of all)
    return torch.mul(total, 1 / count, out=room)


def _mean_rows(weights: Sequence[float], updates: Sequence[Rows], count: int) -> Rows:
    rows = torch.cat([x.rows for x in updates]).unique()
    values = updates[0].values.new_zeros(len(rows), updates[0].values.shape[1])
    for weight, x in zip(weights, updates, strict=True):
        values.index_add_(0, torch.searchsorted(rows, x.rows), x.values, alpha=weight)
    return Rows(rows, values.div_(count))


def _plain(push: Push, update: Update) -> dict[str, Any]:
    rows, values = (update.rows, update.values) if isinstance(update, Rows) else (None, update)
    said = {"uid": push.uid, "clock": push.clock, "have": push.have, "weight": push.weight, "lease": push.lease}
    return {**said, "hyper": push.hyper, "rows": rows, "values": values}


def _read(rows: Tensor | None, values: Tensor, **push: Any) -> tuple[Push, Update]:
    return Push(**push), values if rows is None else Rows(rows, values)
