"""Named points of the space of strategies, each a short file that returns a Strategy."""

from stretto.strategies.allreduce import allreduce
from stretto.strategies.async_gossip import async_gossip
from stretto.strategies.decoupled_diloco import decoupled_diloco
from stretto.strategies.delayed import delayed
from stretto.strategies.delayed_nesterov import delayed_nesterov
from stretto.strategies.demo import demo
from stretto.strategies.diloco import diloco
from stretto.strategies.eager_diloco import eager_diloco
from stretto.strategies.easgd import async_easgd, easgd
from stretto.strategies.gossip_sgd import gossip_sgd
from stretto.strategies.hierarchical_local_sgd import hierarchical_local_sgd
from stretto.strategies.local_sgd import local_sgd, post_local_sgd
from stretto.strategies.noloco import noloco
from stretto.strategies.push_sum import push_sum
from stretto.strategies.served import asp, bsp, ssp
from stretto.strategies.sparse_loco import sparse_loco
from stretto.strategies.streaming_diloco import streaming_diloco

__all__ = [
    "allreduce",
    "asp",
    "async_easgd",
    "async_gossip",
    "bsp",
    "decoupled_diloco",
    "delayed",
    "delayed_nesterov",
    "demo",
    "diloco",
    "eager_diloco",
    "easgd",
    "gossip_sgd",
    "hierarchical_local_sgd",
    "local_sgd",
    "noloco",
    "post_local_sgd",
    "push_sum",
    "sparse_loco",
    "ssp",
    "streaming_diloco",
]
