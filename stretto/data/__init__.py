"""An agent's batches: every sample exactly once an epoch, whoever comes and goes."""

from stretto.data.batches import Batches, Position
from stretto.data.course import plan
from stretto.data.leased import Leased
from stretto.data.order import permutation
from stretto.data.shard import Shard

__all__ = ["Batches", "Leased", "Position", "Shard", "permutation", "plan"]
