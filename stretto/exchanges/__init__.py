"""How the agents reach agreement: coroutines over a Link, the same on sockets and in the simulator."""

from stretto.exchanges.agree import agree
from stretto.exchanges.allreduce import AllReduce
from stretto.exchanges.broadcast import broadcast
from stretto.exchanges.heal import Arriving, Offer, donate, fetch, offered
from stretto.exchanges.lane import Lane
from stretto.exchanges.measure import measure

__all__ = ["AllReduce", "Arriving", "Lane", "Offer", "agree", "broadcast", "donate", "fetch", "measure", "offered"]
