"""A small GPT: reads a window of tokens, and says at each place which comes next.

Radford et al.: Language models are unsupervised multitask learners, 2019 (GPT-2), sections 2.2 and 2.3: layer norm goes
before what it feeds, positions are learned, the head is the token embedding, and what writes into the residual stream
begins smaller by the root of how many do. No dropout: several agents compute exactly what one process with the whole
batch does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_SPREAD = 0.02
"""Standard deviation of fresh weights."""


class Block(nn.Module):
    """One layer: causal attention of all heads, then an MLP of four times the width, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.before_mlp = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, context, width]`` to the same shape."""
        x = x + self.attended(self._attention(self.before_attention(x)))
        out: Tensor = x + self.narrow(functional.gelu(self.widen(self.before_mlp(x))))
        return out

    def _attention(self, x: Tensor) -> Tensor:
        batch, context, width = x.shape
        parts = self.attend(x).view(batch, context, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return mixed.transpose(1, 2).reshape(batch, context, width)


class GPT(nn.Module):
    """Tokens, int64 ``[batch, up to context]``, to scores ``[batch, same, vocabulary]`` of what comes after each.

    >>> GPT(vocabulary=65, context=64)(torch.zeros(2, 10, dtype=torch.int64)).shape
    torch.Size([2, 10, 65])
    """

    def __init__(self, vocabulary: int, context: int, *, layers: int = 4, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        _begin(self, layers)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.blocks(self.tokens(tokens) + self.positions(places))
        return functional.linear(self.norm(x), self.tokens.weight)


def _begin(model: nn.Module, layers: int) -> None:
    """Fresh weights, from torch's global generator."""
    for name, p in model.named_parameters():
        if p.dim() == 1:
            continue  # norms begin as ones and zeros; biases follow
        writes = name.endswith(("attended.weight", "narrow.weight"))
        nn.init.normal_(p, std=_SPREAD / math.sqrt(2 * layers) if writes else _SPREAD)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
