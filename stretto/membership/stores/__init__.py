"""The chain of views in a store of the cluster's own, ZooKeeper or etcd, in place of the voters' majority.

Theory of operation. A store holds one value, the view that stands, and says which may be next: view n is written only
over view n - 1 (compare and swap on the store's own version counter), so there is never more than one view n, whoever
proposes it. That takes the place of the votes: with a store, no majority of the last view need be alive
(:mod:`~stretto.membership.stores.clerk` puts it in as the only voter). Beside it every process announces its seat for
as long as it lives (an ephemeral node, a lease), so that newcomers find the others; who announced first leads.

Values are sealed with the run's secret: whoever else can write to the store can stop a run, but not take it over. They
are not encrypted: use the store's own access control where addresses are a secret.
"""

from stretto.membership.stores.store import SCHEMES, Store, open_store, parse

__all__ = ["SCHEMES", "Store", "open_store", "parse"]
