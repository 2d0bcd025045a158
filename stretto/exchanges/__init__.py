"""Coroutines over a link: how agents reach agreement on tensors, or some of them mix theirs."""

from stretto.exchanges.agree import agree
from stretto.exchanges.allreduce import AllReduce
from stretto.exchanges.broadcast import broadcast
from stretto.exchanges.elastic import Elastic
from stretto.exchanges.gossip import Gossip
from stretto.exchanges.heal import Arriving, Offer, donate, fetch, offered
from stretto.exchanges.lane import Lane
from stretto.exchanges.measure import measure
from stretto.exchanges.narrow import Narrow
from stretto.exchanges.noloco import NoLoCo
from stretto.exchanges.pairs import Pairs
from stretto.exchanges.push_sum import PushSum
from stretto.exchanges.quorum import Quorum
from stretto.exchanges.within import Within

__all__ = [
    "AllReduce",
    "Arriving",
    "Elastic",
    "Gossip",
    "Lane",
    "Narrow",
    "NoLoCo",
    "Offer",
    "Pairs",
    "PushSum",
    "Quorum",
    "Within",
    "agree",
    "broadcast",
    "donate",
    "fetch",
    "measure",
    "offered",
]
