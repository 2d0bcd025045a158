"""Who is in the epoch: the coordinator, the way in, and what they say to each other."""

from stretto.membership.entry import Entry, enter
from stretto.membership.messages import Decoder, Join, Leave, Left, Lost, Message, Waiting, Welcome, encode
from stretto.membership.rendezvous import Coordinator
from stretto.membership.roll import Roll

__all__ = [
    "Coordinator",
    "Decoder",
    "Entry",
    "Join",
    "Leave",
    "Left",
    "Lost",
    "Message",
    "Roll",
    "Waiting",
    "Welcome",
    "encode",
    "enter",
]
