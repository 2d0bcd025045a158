"""The parameter server: the model in slots at holders, and the samples leased to who asks."""

from stretto.server.space import Extent, Piece, Slot, assign, plan_slots

__all__ = ["Extent", "Piece", "Slot", "assign", "plan_slots"]
