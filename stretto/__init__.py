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
    from stretto.strategies import *
    from stretto.text import parse as parse

_HOMES = {
    "Agent": "stretto.agent",
    "Strategy": "stretto.core",
    "join": "stretto.launch.join",
    "parse": "stretto.text",
}
"""Of all that is no strategy."""

__all__ = [
    "Agent",
    "Strategy",
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
    "join",
    "local_sgd",
    "noloco",
    "parse",
    "post_local_sgd",
    "push_sum",
    "sparse_loco",
    "ssp",
    "streaming_diloco",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"stretto has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES.get(name, "stretto.strategies")), name)
