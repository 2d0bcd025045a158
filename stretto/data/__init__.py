"""An agent's batches: every sample exactly once an epoch, whoever comes and goes."""

from stretto.data.course import plan
from stretto.data.order import permutation
from stretto.data.shard import Position, Shard

__all__ = ["Position", "Shard", "permutation", "plan"]
