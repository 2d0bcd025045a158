"""A network laboratory of one's own, and the storms that blow in it: real programs, real faults, from a seed."""

from stretto.lab.laboratory import Laboratory
from stretto.lab.switch import Counts, Switch

__all__ = ["Counts", "Laboratory", "Switch"]
