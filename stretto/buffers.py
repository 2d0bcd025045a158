"""Buffers of models whose agents step apart (batch norm's statistics and counts): one mean of them all, at fences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stretto.buckets import Passengers, Room


class Buffers:
    """They travel as float64, by the rule of ``room``; nothing travels where there are none, or each keeps its own."""

    def __init__(self, models: Sequence[nn.Module], room: Room) -> None:
        self._passengers = Passengers(models, room, counts=True)
        nbytes = 8 * self._passengers.numel
        self.flat = room.allocate(nbytes).view(torch.float64) if nbytes else torch.zeros(0, dtype=torch.float64)
        self.mean = room.allocate(nbytes).view(torch.float64) if nbytes and room.apart else self.flat

    def board(self) -> bool:
        """Put ours in ``flat``; is there anything?"""
        self._passengers.board(self.flat)
        return self.flat.numel() > 0

    def alight(self, share: float) -> None:
        """Ours become what is in ``mean``, to which so large a share of all gave theirs."""
        mean: Tensor = self.mean if share == 1.0 else self.mean / share
        self._passengers.alight(mean)
