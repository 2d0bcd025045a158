"""The models of the image workloads: an MLP, a CNN and an LSTM, sized by the side of the image.

None has dropout or batch norm: several agents compute exactly what one process with the whole batch does.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


def mlp(side: int, classes: int = 10, width: int = 128, depth: int = 2) -> nn.Sequential:
    """``depth`` hidden layers of ``width``; images ``[batch, 1, side, side]`` to scores ``[batch, classes]``."""
    widths = [side * side] + [width] * depth
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def cnn(side: int, classes: int = 10) -> nn.Sequential:
    """Two 3x3 convolutions, each with pooling, and a hidden layer: 421,642 parameters at ``side=28``."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (side // 4) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


class RowLSTM(nn.Module):
    """Reads an image row by row, and answers from the last state."""

    def __init__(self, side: int, classes: int = 10, width: int = 128) -> None:
        super().__init__()
        self.lstm = nn.LSTM(side, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.lstm(images.squeeze(1))
        scores: Tensor = self.head(states[:, -1])
        return scores
