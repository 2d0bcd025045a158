"""Named points of the space of strategies, each a short file that returns a Strategy."""

from stretto.strategies.allreduce import allreduce

__all__ = ["allreduce"]
