"""State as (facts, tensors), and checkpoints of it: parts written by agents alone, read whole or not at all."""

from stretto.checkpoint.checkpoints import Checkpoint, Checkpoints
from stretto.checkpoint.name import Keep, Name, name_of_run
from stretto.checkpoint.part import Part, cut, spread
from stretto.checkpoint.tree import Entry, Flat, check, digest, entries, flatten, raw, restore
from stretto.checkpoint.writer import Writer

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Entry",
    "Flat",
    "Keep",
    "Name",
    "Part",
    "Writer",
    "check",
    "cut",
    "digest",
    "entries",
    "flatten",
    "name_of_run",
    "raw",
    "restore",
    "spread",
]
