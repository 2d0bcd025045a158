"""Which samples are trained and which are left: a value that every agent holds, and how what is left is dealt."""

from stretto.ledger.deal import Deal
from stretto.ledger.ledger import Ledger, deal
from stretto.ledger.ranges import OPEN, Ranges, count
from stretto.ledger.shares import shares_of

__all__ = ["OPEN", "Deal", "Ledger", "Ranges", "count", "deal", "shares_of"]
