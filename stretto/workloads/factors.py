"""Matrix factorisation with biases: a rating is what all give, what this user and this item are, and how they fit.

    rating = mean + bias of the user + bias of the item + factors of the user · factors of the item

Koren, Bell, Volinsky: Matrix factorization techniques for recommender systems, IEEE Computer 42 (8), 2009, equations 4
and 5.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

PENALTY = 0.02
"""What a rating's squared error is charged for each square of its user's and its item's numbers (Koren's lambda)."""

_SPREAD = 0.1
"""Standard deviation of fresh factors."""


class Factors(nn.Module):
    """Users and items, int64 ``[batch, 2]``, to ratings ``[batch]``.

    A row of a table is a bias and ``rank`` factors, so that a rating touches one row of each. In training the penalty
    is in the gradients and not in the loss, and only rows that a batch touches bear it: gradients stay sparse.

    Args:
        mean: of all ratings, where the global mean begins.
        sparse: gradients of the tables hold the rows of a batch, and not all; a server takes them so.

    >>> model = Factors(users=5, items=3, rank=2, sparse=True)
    >>> model(torch.tensor([[4, 0], [4, 2]])).sum().backward()
    >>> model.users.weight.grad.coalesce().indices()
    tensor([[4]])
    """

    def __init__(self, users: int, items: int, rank: int, mean: float = 0.0, *, sparse: bool = False) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([mean]))
        self.users = nn.Embedding(users, 1 + rank, sparse=sparse)
        self.items = nn.Embedding(items, 1 + rank, sparse=sparse)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=_SPREAD)
            nn.init.zeros_(table.weight[:, 0].detach())

    def forward(self, pairs: Tensor) -> Tensor:
        users, items = self.users(pairs[:, 0]), self.items(pairs[:, 1])
        for rows in (users, items):
            if rows.requires_grad:
                rows.register_hook(partial(_charged, rows.detach()))
        fit = (users[:, 1:] * items[:, 1:]).sum(1)
        rating: Tensor = self.mean + users[:, 0] + items[:, 0] + fit
        return rating


def _charged(rows: Tensor, gradient: Tensor) -> Tensor:
    """With the gradient of the mean penalty over a batch's ratings."""
    return gradient.add(rows, alpha=2 * PENALTY / len(rows))
