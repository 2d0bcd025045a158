"""The whole story of a parameter server in one file: agents learn what users think of items, by rows of two tables.

    python examples/train_recommender.py                                alone
    stretto run --agents 4 examples/train_recommender.py                four agents, each holding a part of the model
    stretto run --agents 3 --servers 1 examples/train_recommender.py    or another process holds it
    stretto run --agents 4 examples/train_recommender.py --strategy "ssp(4)"
    stretto run --agents 4 examples/train_recommender.py --strategy allreduce --dense

Ratings are made here, around a truth of which the noise is known: so it is known how good a model can be. A batch of
128 ratings touches at most 128 of the 1,000 users and as many items: with ``sparse=True`` only their rows travel.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stretto

USERS, ITEMS, RANK = 1000, 1000, 3
NOISE = 0.5


def ratings(count: int = 400_000) -> tuple[Tensor, Tensor]:
    """``count`` pairs of a user and an item, int64 [count, 2], and the stars that the one gave the other, float32."""
    draw = torch.Generator().manual_seed(0)
    users, items = (0.7 * torch.randn(n, 1 + RANK, generator=draw) for n in (USERS, ITEMS))
    user, item = (torch.randint(n, (count,), generator=draw) for n in (USERS, ITEMS))
    truth = 3.5 + users[user, 0] + items[item, 0] + (users[user, 1:] * items[item, 1:]).sum(1)
    return torch.stack((user, item), dim=1), truth + NOISE * torch.randn(count, generator=draw)


class Factors(nn.Module):
    """A rating is a mean, what this user and this item are, and how they fit (Koren, Bell, Volinsky 2009)."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([3.5]))
        self.users = nn.Embedding(USERS, 1 + RANK, sparse=sparse)
        self.items = nn.Embedding(ITEMS, 1 + RANK, sparse=sparse)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, pairs: Tensor) -> Tensor:
        users, items = self.users(pairs[:, 0]), self.items(pairs[:, 1])
        rating: Tensor = self.mean + users[:, 0] + items[:, 0] + (users[:, 1:] * items[:, 1:]).sum(1)
        return rating


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--strategy", default="asp")
    options.add_argument("--dense", action="store_true", help="gradients of whole tables, as allreduce needs them")
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()

    torch.set_num_threads(1)  # these tensors are small
    pairs, stars = ratings()
    train, (test_pairs, test_stars) = (pairs[:-40_000], stars[:-40_000]), (pairs[-40_000:], stars[-40_000:])
    torch.manual_seed(args.seed)
    model = Factors(sparse=not args.dense)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)  # servers step with it; it goes well with rows

    agent = stretto.join()
    model, optimizer = agent.prepare(model, optimizer, strategy=args.strategy)

    for x, y in agent.shard(train, batch_size=max(1, 512 // agent.size), epochs=args.epochs, seed=args.seed):
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad():
        rmse = F.mse_loss(model(test_pairs), test_stars).sqrt().item()
    print(f"agent {agent.rank} of {agent.size}: RMSE {rmse:.4f}, {rmse / NOISE:.3f} times the noise, {agent.digest()}")


if __name__ == "__main__":
    main()
