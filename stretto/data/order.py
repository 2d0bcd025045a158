"""From positions to sample numbers: an epoch's permutation, the same on every agent and machine."""

from __future__ import annotations

import torch
from torch import Tensor

from stretto.core import mixed
from stretto.ledger import Ledger, Ranges


def permutation(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch: int64 ``[samples]``."""
    generator = torch.Generator().manual_seed(mixed(seed, epoch))
    return torch.randperm(samples, generator=generator)


class Order:
    """Sample numbers by position, as a ledger says; the permutation is made once an epoch."""

    def __init__(self, ledger: Ledger) -> None:
        assert ledger.samples is not None
        self._samples, self._seed, self._shuffle = ledger.samples, ledger.seed, ledger.shuffle
        self._epoch, self._numbers = -1, torch.empty(0, dtype=torch.int64)

    def numbers(self, epoch: int, positions: Ranges) -> Tensor:
        """int64 ``[positions]``."""
        if self._epoch != epoch:
            self._epoch, self._numbers = epoch, self._of(epoch)
        pieces = [self._numbers[start:stop] for start, stop in positions]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _of(self, epoch: int) -> Tensor:
        return permutation(self._samples, self._seed, epoch) if self._shuffle else torch.arange(self._samples)
