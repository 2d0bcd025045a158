"""What tests of an agent's user have in common: inputs, and what is as good as equal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

every_link = pytest.mark.parametrize("link", ["tcp", "shm", "c10d"])


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def flat(net: nn.Module) -> list[float]:
    return torch.cat([p.detach().double().flatten() for p in net.parameters()]).tolist()


def batches(steps: int, size: int) -> list[list[Tensor]]:
    """``[step][rank]``, 4 samples each."""
    return [[numbers(4, 6, seed=100 * step + rank) for rank in range(size)] for step in range(steps)]


def close(a: list[float], b: list[float], tolerance: float = 1e-6) -> bool:
    x, y = torch.tensor(a), torch.tensor(b)
    return bool((x - y).abs().max() <= tolerance * y.abs().max())
