"""How the agents reach agreement: coroutines over a Link, the same on sockets and in the simulator."""

from stretto.exchanges.agree import agree
from stretto.exchanges.allreduce import AllReduce
from stretto.exchanges.broadcast import broadcast
from stretto.exchanges.gossip import Gossip
from stretto.exchanges.heal import Arriving, Offer, donate, fetch, offered
from stretto.exchanges.lane import Lane
from stretto.exchanges.measure import measure
from stretto.exchanges.narrow import Narrow
from stretto.exchanges.push_sum import PushSum
from stretto.exchanges.within import Within

__all__ = [
    "AllReduce",
    "Arriving",
    "Gossip",
    "Lane",
    "Narrow",
    "Offer",
    "PushSum",
    "Within",
    "agree",
    "broadcast",
    "donate",
    "fetch",
    "measure",
    "offered",
]
