"""Tensors in memory that couriers of one host share, as words by which another of them finds it."""

from __future__ import annotations

import torch
from torch import Tensor

from stretto.errors import ProtocolError
from stretto.links.memory import Arena

_WORDS = 5


class Lending:
    """What our trainer shows us, and what others lend us for as long as an epoch lasts."""

    def __init__(self) -> None:
        self._own: list[tuple[int, int, Arena]] = []
        self._others: dict[tuple[int, int], Arena] = {}

    def show(self, pid: int, fd: int, arena: Arena) -> None:
        """Memory of process ``pid``, there by descriptor ``fd``."""
        self._own.append((pid, fd, arena))

    def lend(self, x: Tensor) -> Tensor | None:
        """Where ``x`` lies (int64); None where only we see it."""
        for pid, fd, arena in self._own:
            offset = arena.offset_of(x)
            if offset is not None:
                return torch.tensor([pid, fd, arena.nbytes, offset, x.numel()])
        return None

    def borrow(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor that another one lends.

        Raises:
            ProtocolError: there is none.
        """
        if words.dtype != torch.int64 or words.numel() != _WORDS:
            raise ProtocolError(f"{words.numel()} words of {words.dtype} say nothing of where a tensor lies")
        pid, fd, nbytes, offset, numel = words.tolist()
        if not 0 <= offset <= nbytes - numel * dtype.itemsize:
            raise ProtocolError(f"{numel} elements at byte {offset} are not in memory of {nbytes} bytes")
        arena = self._others.get((pid, fd))
        if arena is None or arena.nbytes < nbytes:
            arena = self._others[pid, fd] = Arena.open(pid, fd, nbytes)
        return arena.tensor(offset, numel, dtype)

    def give_back(self) -> None:
        """Another epoch begins: a process of another life may have the same number."""
        self._others.clear()
