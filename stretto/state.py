"""A state in one piece of memory: the facts and tensors of :mod:`stretto.checkpoint.tree`, one after the other.

    length of the facts, u64 │ facts │ padding │ tensor │ padding │ tensor …

Tensors begin at multiples of 64 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from stretto.checkpoint.tree import dtype_named, entries, flatten, restore
from stretto.errors import DataError

_LINE: Final = 64
_length = struct.Struct("<Q")


def pack(tree: Any, room: Callable[[int], Tensor]) -> Tensor:
    """``tree`` in memory (uint8) that ``room(nbytes)`` gives, which may be more.

    Raises:
        UsageError: it holds what is no plain value; says where.
    """
    facts, tensors = flatten(tree)
    ends = [_rounded(_length.size + len(facts))]
    for x in tensors:
        ends.append(ends[-1] + _rounded(x.nbytes))
    memory = room(ends[-1])[: ends[-1]]
    memory[: _length.size] = torch.frombuffer(bytearray(_length.pack(len(facts))), dtype=torch.uint8)
    memory[_length.size : _length.size + len(facts)] = torch.frombuffer(bytearray(facts), dtype=torch.uint8)
    for x, start in zip(tensors, ends, strict=False):
        memory[start : start + x.nbytes] = x.detach().reshape(-1).view(torch.uint8)
    return memory


def packed(tree: Any) -> Tensor:
    """``tree`` in memory of its own (uint8)."""
    return pack(tree, lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8))


def unpack(memory: Tensor) -> Any:
    """The tree that lies in ``memory``; its tensors are views of it.

    Raises:
        DataError: it is damaged.
    """
    raw = memory.numpy().data
    (length,) = _length.unpack_from(raw)
    if length > len(raw) - _length.size:
        raise DataError(f"a state of {len(raw)} bytes announces {length} bytes of facts")
    facts = bytes(raw[_length.size : _length.size + length])
    tensors, at = [], _rounded(_length.size + length)
    for entry in entries(facts):
        dtype = dtype_named(entry.dtype)
        nbytes = prod(entry.shape) * dtype.itemsize
        if at + nbytes > len(raw):
            raise DataError(f"a state of {len(raw)} bytes ends before tensor {entry}")
        tensors.append(memory[at : at + nbytes].view(dtype).view(entry.laid))
        at += _rounded(nbytes)
    return restore(facts, tensors)


def _rounded(nbytes: int) -> int:
    return -(-nbytes // _LINE) * _LINE
