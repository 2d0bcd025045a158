"""The courier: a process beside the trainer that owns its connections and runs its exchanges.

Theory of operation. Python code in the trainer (decoding, tokenising, an environment) holds the interpreter's lock,
and a thread that moves bytes beside it starves. So :class:`Courier` forks at the start. Gradients lie in memory both
map; the trainer writes one order on a socket pair ("bucket 3 of step 12 lies there") and reads one answer. The
courier turns an order into a coroutine over its :class:`~stretto.links.stream.Mesh` and goes on with others
meanwhile. When the trainer ends, for whatever reason, the courier sees the pair close, tells the others, and ends
too. Where all agents share memory, averages skip the socket pair: see :mod:`stretto.links.memory`.
"""

from stretto.courier.orders import Counted
from stretto.courier.place import Place
from stretto.courier.server import serve
from stretto.courier.trainer import Courier

__all__ = ["Counted", "Courier", "Place", "serve"]
