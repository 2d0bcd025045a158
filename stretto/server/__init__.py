"""The parameter server: the model in slots at holders, and the samples leased to who asks."""

from stretto.server.leases import Lease, Leases
from stretto.server.rules import Rule, Stepper
from stretto.server.shard import Shard
from stretto.server.space import Extent, Piece, Slot, assign, plan_slots
from stretto.server.update import Push, Rows, Update
from stretto.server.value import Server

__all__ = [
    "Extent",
    "Lease",
    "Leases",
    "Piece",
    "Push",
    "Rows",
    "Rule",
    "Server",
    "Shard",
    "Slot",
    "Stepper",
    "Update",
    "assign",
    "plan_slots",
]
