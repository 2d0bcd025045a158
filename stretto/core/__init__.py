"""The values every layer shares, and the Protocols between layers. No I/O, no clock, nothing mutable.

A strategy is written once as ``async def`` over a :class:`Link`, and runs unchanged on sockets and in the simulator:
all it can do is post, receive, sleep and run things together, and only a driver knows what these mean.
"""

from stretto.core.codec import Codec, Groups, State
from stretto.core.epoch import FIRST_SERVER, UNNAMED, Epoch, Member, called
from stretto.core.exchange import Cell, Exchange, Mixing, Served
from stretto.core.like import LayerRole, Like, Named
from stretto.core.link import ANY, Link, Message, Native, Network, Payload
from stretto.core.seeds import mixed
from stretto.core.strategy import Beside, Landing, Outer, Schedule, Signal, Strategy
from stretto.core.topology import Graph, Role, Topology

__all__ = [
    "ANY",
    "FIRST_SERVER",
    "UNNAMED",
    "Beside",
    "Cell",
    "Codec",
    "Epoch",
    "Exchange",
    "Graph",
    "Groups",
    "Landing",
    "LayerRole",
    "Like",
    "Link",
    "Member",
    "Message",
    "Mixing",
    "Named",
    "Native",
    "Network",
    "Outer",
    "Payload",
    "Role",
    "Schedule",
    "Served",
    "Signal",
    "State",
    "Strategy",
    "Topology",
    "called",
    "mixed",
]
