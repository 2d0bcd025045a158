"""Who is in, and what comes next: views and the votes on them, the coordinator, and an agent's way in and part."""

from stretto.membership.entry import Entry, enter
from stretto.membership.keeping import kept
from stretto.membership.messages import Decoder, Hello, Message, Report, Seat, View, Vote, encode
from stretto.membership.rendezvous import Coordinator, new_uid
from stretto.membership.runner import Runner
from stretto.membership.settle import Settlement, settle
from stretto.membership.views import Views

__all__ = [
    "Coordinator",
    "Decoder",
    "Entry",
    "Hello",
    "Message",
    "Report",
    "Runner",
    "Seat",
    "Settlement",
    "View",
    "Views",
    "Vote",
    "encode",
    "enter",
    "kept",
    "new_uid",
    "settle",
]
