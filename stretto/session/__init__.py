"""One agent's side of a run: rounds, views, and what is kept between them."""

from stretto.session.lanes import Layout
from stretto.session.rounds import AGREED, SETTLE, Closing, Direct, Order
from stretto.session.server import ServerSession
from stretto.session.session import Session
from stretto.session.surroundings import Attendant, Surroundings, Trainer
from stretto.session.views import epoch_of

__all__ = [
    "AGREED",
    "SETTLE",
    "Attendant",
    "Closing",
    "Direct",
    "Layout",
    "Order",
    "ServerSession",
    "Session",
    "Surroundings",
    "Trainer",
    "epoch_of",
]
