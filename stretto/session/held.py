"""What is held on servers, as a process makes it from the words in which all were told: slots, codecs, an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from stretto.codecs import Identity
from stretto.core import Codec, Like, Payload, Strategy, mixed
from stretto.errors import UsageError
from stretto.server.client import Client
from stretto.server.settlement import Spec
from stretto.server.space import Slot, plan_slots
from stretto.server.stock import Stock
from stretto.server.value import Server
from stretto.session.lanes import Layout
from stretto.session.metered import Meter, Metered
from stretto.text import parse

_SEED: Final = 6


@dataclass(frozen=True, slots=True)
class Makers:
    """By what slots, and those who ask for them, are made: a simulation takes some that tell what they do."""

    stock: Callable[..., Stock] = Stock
    client: Callable[..., Client] = Client


REAL: Final = Makers()


class Parts:
    """Where an agent's parts and values lie, by bucket: a :class:`stretto.server.client.Memory`.

    A part is all elements of the bucket, or, of a table, its rows (int64, ascending) and their elements.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._values = values
        self.parts: Sequence[Payload] = ()

    def part(self, slot: Slot) -> Payload:
        part = self.parts[slot.bucket]
        if not slot.width:
            return (part[0][slot.start : slot.stop],)
        if not part:
            return ()
        rows, elements = part
        begin, end = slot.start // slot.width, slot.stop // slot.width
        first, last = torch.searchsorted(rows, torch.tensor([begin, end])).tolist()
        return rows[first:last] - begin, elements[first * slot.width : last * slot.width]

    def values(self, slot: Slot) -> Tensor:
        return self._values[slot.bucket][slot.start : slot.stop]


class Held:
    """What ``spec`` says.

    Raises:
        UsageError: its strategy has no servers.
    """

    def __init__(self, spec: Spec, meter: Meter, make: Callable[..., Stock] = Stock) -> None:
        strategy: Strategy = parse(spec.strategy, "strategy")
        if not isinstance(strategy.exchange, Server):
            raise UsageError(f"{spec.strategy} has no servers; use bsp, ssp or asp")
        self.spec, self.server, self._make = spec, strategy.exchange, make
        self.codec, self.pull = _metered(strategy.codec, meter), _metered(self.server.pull, meter)
        self.slots = plan_slots(spec.extents, self.server.slot)

    @property
    def terms(self) -> tuple[Sequence[Slot], int | None, int]:
        """What a plan needs to know."""
        return self.slots, self.server.staleness, self.server.replicas

    def like(self, slot: Slot, layouts: Sequence[Layout] = (), me: int = 0) -> Like:
        """Of a slot's elements; ``layouts`` know what lies in them, and ``me`` draws by itself."""
        dtype, seed = getattr(torch, slot.dtype), mixed(_SEED, slot.number)
        if not layouts:
            return Like((slot.elements,), dtype, seed=seed)
        layout = layouts[slot.bucket]
        whole = Like((layout.gradients,), dtype, layout.pieces, seed, mixed(seed, me))
        return whole.part(slot.start, slot.stop, slot.number)

    def stock(self, slot: Slot, values: Tensor | None = None) -> Stock:
        """A slot that begins with ``values``, or zeros."""
        like = self.like(slot)
        start = torch.zeros(slot.elements, dtype=like.dtype) if values is None else values.clone()
        return self._make(slot, self.server, self.spec.rule, self.codec, like, start)


def _metered(codec: Codec, meter: Meter) -> Codec:
    return codec if codec == Identity() else Metered(codec, meter)
