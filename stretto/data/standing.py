"""How an agent's shard stands, as a value: what a newcomer adopts, and a checkpoint keeps."""

from __future__ import annotations

from msgspec import Struct

from stretto.ledger import Deal, Ledger


class Handed(Struct, frozen=True, forbid_unknown_fields=True):
    """A step that was handed out to ``members`` (by rank) and is not committed."""

    deal: Deal
    step: int
    members: tuple[int, ...]


class Standing(Struct, frozen=True, forbid_unknown_fields=True):
    """What is committed, and what is pending; samples of an agent and step, and epochs (0: not said)."""

    ledger: Ledger
    pending: tuple[Handed, ...] = ()
    batch_size: int = 0
    epochs: int = 0
