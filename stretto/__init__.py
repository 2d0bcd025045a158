"""Stretto: distributed PyTorch training whose agents choose how they synchronise.

    agent = stretto.join()
    model, optimizer = agent.prepare(model, optimizer, strategy="allreduce")
    for x, y in agent.shard(dataset, batch_size=64, epochs=5):
        ...

Names load when they are first used, so that the command line answers without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stretto.agent import Agent as Agent
    from stretto.core import Strategy as Strategy
    from stretto.launch.join import join as join
    from stretto.strategies import allreduce as allreduce
    from stretto.strategies import async_easgd as async_easgd
    from stretto.strategies import async_gossip as async_gossip
    from stretto.strategies import decoupled_diloco as decoupled_diloco
    from stretto.strategies import delayed as delayed
    from stretto.strategies import demo as demo
    from stretto.strategies import diloco as diloco
    from stretto.strategies import eager_diloco as eager_diloco
    from stretto.strategies import easgd as easgd
    from stretto.strategies import gossip_sgd as gossip_sgd
    from stretto.strategies import hierarchical_local_sgd as hierarchical_local_sgd
    from stretto.strategies import local_sgd as local_sgd
    from stretto.strategies import noloco as noloco
    from stretto.strategies import post_local_sgd as post_local_sgd
    from stretto.strategies import push_sum as push_sum
    from stretto.strategies import sparse_loco as sparse_loco
    from stretto.strategies import streaming_diloco as streaming_diloco
    from stretto.text import parse as parse

_HOMES = {
    "Agent": "stretto.agent",
    "Strategy": "stretto.core",
    "allreduce": "stretto.strategies",
    "async_easgd": "stretto.strategies",
    "async_gossip": "stretto.strategies",
    "decoupled_diloco": "stretto.strategies",
    "delayed": "stretto.strategies",
    "demo": "stretto.strategies",
    "diloco": "stretto.strategies",
    "eager_diloco": "stretto.strategies",
    "easgd": "stretto.strategies",
    "gossip_sgd": "stretto.strategies",
    "hierarchical_local_sgd": "stretto.strategies",
    "join": "stretto.launch.join",
    "local_sgd": "stretto.strategies",
    "noloco": "stretto.strategies",
    "parse": "stretto.text",
    "post_local_sgd": "stretto.strategies",
    "push_sum": "stretto.strategies",
    "sparse_loco": "stretto.strategies",
    "streaming_diloco": "stretto.strategies",
}

__all__ = [
    "Agent",
    "Strategy",
    "allreduce",
    "async_easgd",
    "async_gossip",
    "decoupled_diloco",
    "delayed",
    "demo",
    "diloco",
    "eager_diloco",
    "easgd",
    "gossip_sgd",
    "hierarchical_local_sgd",
    "join",
    "local_sgd",
    "noloco",
    "parse",
    "post_local_sgd",
    "push_sum",
    "sparse_loco",
    "streaming_diloco",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"stretto has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
