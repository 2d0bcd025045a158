"""For the tests of slots: optimizers, gradients from a seed, tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, SparseAdam

from stretto.server import Piece, Slot

DENSE: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.1}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adam": (Adam, {"lr": 0.01}),
    "amsgrad": (Adam, {"lr": 0.01, "amsgrad": True}),
    "adamw": (AdamW, {"lr": 0.01, "betas": (0.8, 0.95)}),
    "nadam": (NAdam, {"lr": 0.01, "decoupled_weight_decay": True}),
    "radam": (RAdam, {"lr": 0.01}),
    "adamax": (Adamax, {"lr": 0.01}),
    "rmsprop": (RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "adagrad": (Adagrad, {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    "adadelta": (Adadelta, {"lr": 1.0}),
}
TABLES: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": DENSE["sgd"],
    "adagrad": DENSE["adagrad"],
    "sparse_adam": (SparseAdam, {"lr": 0.01, "eps": 1e-12}),
}
_OTHERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {"adam_eps": (Adam, {"lr": 0.01, "eps": 1e-12})}


def drawn(seed: int, *shape: int) -> Tensor:
    """Numbers of a seed, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(kind: str, parameters: Sequence[Tensor], **how: Any) -> Optimizer:
    """An optimizer with a group for each parameter; from the second on with another lr and weight decay."""
    make, options = {**_OTHERS, **TABLES, **DENSE}[kind]
    groups: list[dict[str, Any]] = [{"params": [parameters[0]]}]
    for p in parameters[1:]:
        groups.append({"params": [p], "lr": options["lr"] * 2, "weight_decay": 0.03})
    if make is not SparseAdam:
        how = {"foreach": False, **how}
    optimizer: Optimizer = make(groups, **options, **how)  # type: ignore[arg-type]
    return optimizer


def table(first: int, last: int, width: int) -> Slot:
    """The slot of rows ``first`` to ``last`` of a table, which begins its bucket."""
    pieces = (Piece(0, 0, (last - first) * width),)
    return Slot(0, 0, first * width, last * width, "float32", pieces, width)
