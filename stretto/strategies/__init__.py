"""Named points of the space of strategies, each a short file that returns a Strategy."""

from stretto.strategies.allreduce import allreduce
from stretto.strategies.diloco import diloco
from stretto.strategies.local_sgd import local_sgd, post_local_sgd

__all__ = ["allreduce", "diloco", "local_sgd", "post_local_sgd"]
