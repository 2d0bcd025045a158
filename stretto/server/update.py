"""What agents push to a slot: a gradient, whole or of some rows of a table, and what is said beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from stretto.checkpoint.tree import dtype_named
from stretto.errors import ProtocolError

if TYPE_CHECKING:
    from stretto.server.space import Slot


@dataclass(frozen=True, slots=True)
class Rows:
    """A gradient of some rows of a table: ``values`` [r, width] of ``rows`` (int64 [r], ascending, each once)."""

    rows: Tensor
    values: Tensor


Update: TypeAlias = Tensor | Rows
"""A slot's gradient: flat, of its elements, or of rows where the slot is of a table."""


@dataclass(frozen=True, slots=True)
class Push:
    """Who pushes what.

    Attributes:
        uid, clock: the agent's ``clock``-th push; a repeat has the same.
        have: the version of the slot whose values the gradient was computed with.
        weight: the agent's share of the samples, such that the mean of it over agents is 1.
        hyper: the optimizer's numbers, as :meth:`stretto.server.rules.Rule.hyper` gives them.
        lease: which samples it was; -1: what is dealt without asking.
    """

    uid: int
    clock: int
    have: int
    weight: float
    hyper: Tensor
    lease: int = -1


def check(push: Push, update: Update, slot: Slot, numbers: int) -> None:
    """That this is a push to ``slot``, whose optimizer has so many ``numbers``.

    Raises:
        ProtocolError: the update has another length, dtype or kind, or rows that the slot does not have; or the push
            has other numbers.
    """
    who = f"agent {push.uid} pushed"
    whole = isinstance(update, Tensor)
    values = update if isinstance(update, Tensor) else update.values
    if whole == bool(slot.width):
        raise ProtocolError(
            f"{who} {'a whole gradient' if whole else 'rows'} to slot {slot.number}, "
            f"which is {'of a table' if whole else 'no table'}; is its model another?"
        )
    if values.dtype != dtype_named(slot.dtype):
        raise ProtocolError(
            f"{who} {values.dtype} to slot {slot.number}, which is torch.{slot.dtype}; is its model another?"
        )
    if isinstance(update, Rows):
        _check_rows(update, slot, who)
    elif update.shape != (slot.elements,):
        raise ProtocolError(
            f"{who} {update.numel()} elements to slot {slot.number}, which has {slot.elements}; is its model another?"
        )
    if push.hyper.shape != (numbers,) or push.hyper.dtype != torch.float64:
        raise ProtocolError(
            f"{who} {push.hyper.numel()} numbers ({push.hyper.dtype}) of its optimizer to slot {slot.number}, "
            f"which awaits {numbers} (torch.float64); is its optimizer another?"
        )


def _check_rows(update: Rows, slot: Slot, who: str) -> None:
    rows, height = update.rows, slot.elements // slot.width
    if rows.dtype != torch.int64 or rows.dim() != 1 or update.values.shape != (len(rows), slot.width):
        raise ProtocolError(
            f"{who} values {list(update.values.shape)} of rows {list(rows.shape)} ({rows.dtype}) "
            f"to slot {slot.number}, whose rows have {slot.width} elements; is its model another?"
        )
    if len(rows) and (rows[0] < 0 or rows[-1] >= height or not bool((rows[1:] > rows[:-1]).all())):
        raise ProtocolError(
            f"{who} rows to slot {slot.number} that are not ascending, each once, from 0 to {height - 1}"
        )
