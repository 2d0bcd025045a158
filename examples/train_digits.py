"""The whole story in one file: several agents train one CNN on real digits.

    python examples/train_digits.py                            alone
    stretto run --agents 4 examples/train_digits.py            four agents on this machine
    stretto run --agents 4 examples/train_digits.py --strategy "allreduce(topology=tree)"
    torchrun --nproc-per-node 4 examples/train_digits.py       or started by somebody else

The two lines of stretto are marked. Everything else is plain PyTorch.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import stretto

SAMPLES = 128
"""In a step, of all agents together; each takes its part, so the result does not depend on how many there are."""


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """1,437 images to train and 360 to test: float32 [n, 1, 8, 8] in [0, 1], and labels int64 [n]."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8)[order] / 16
    y = torch.from_numpy(labels).long()[order]
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--strategy", default="allreduce")
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()

    train, (test_x, test_y) = digits()
    torch.manual_seed(args.seed)
    model = cnn()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    agent = stretto.join()  # (1) who am I, and who are the others?
    model, optimizer = agent.prepare(model, optimizer, strategy=args.strategy)  # (2) gradients are means from here on

    for x, y in agent.shard(train, batch_size=max(1, SAMPLES // agent.size), epochs=args.epochs, seed=args.seed):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad():
        accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
    print(f"agent {agent.rank} of {agent.size}: accuracy {accuracy:.3f}, weights {agent.digest()}")


if __name__ == "__main__":
    main()
