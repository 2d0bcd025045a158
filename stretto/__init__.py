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
    from stretto.strategies import demo as demo
    from stretto.strategies import diloco as diloco
    from stretto.strategies import easgd as easgd
    from stretto.strategies import local_sgd as local_sgd
    from stretto.strategies import noloco as noloco
    from stretto.strategies import post_local_sgd as post_local_sgd
    from stretto.strategies import sparse_loco as sparse_loco
    from stretto.text import parse as parse

_HOMES = {
    "Agent": "stretto.agent",
    "Strategy": "stretto.core",
    "allreduce": "stretto.strategies",
    "async_easgd": "stretto.strategies",
    "async_gossip": "stretto.strategies",
    "decoupled_diloco": "stretto.strategies",
    "demo": "stretto.strategies",
    "diloco": "stretto.strategies",
    "easgd": "stretto.strategies",
    "join": "stretto.launch.join",
    "local_sgd": "stretto.strategies",
    "noloco": "stretto.strategies",
    "parse": "stretto.text",
    "post_local_sgd": "stretto.strategies",
    "sparse_loco": "stretto.strategies",
}

__all__ = [
    "Agent",
    "Strategy",
    "allreduce",
    "async_easgd",
    "async_gossip",
    "decoupled_diloco",
    "demo",
    "diloco",
    "easgd",
    "join",
    "local_sgd",
    "noloco",
    "parse",
    "post_local_sgd",
    "sparse_loco",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"stretto has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
