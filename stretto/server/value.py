"""What a parameter server does with what it is pushed: how far agents may be apart, and how stale gradients count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from stretto.codecs.identity import Identity
from stretto.core import Codec
from stretto.errors import UsageError
from stretto.text import named


@named("server", kind="exchange")
@dataclass(frozen=True)
class Server:
    """The model lives in slots; agents push gradients to them and pull values, at most ``staleness`` steps apart.

    Attributes:
        staleness: 0: all step together, with the mean of their gradients; k: nobody begins a step when it is more than
            k steps ahead of the slowest (Ho et al.: More Effective Distributed ML via a Stale Synchronous Parallel
            Parameter Server, NeurIPS 2013); None: nobody waits.
        damped: the learning rate of a gradient that is tau pushes old is multiplied by 1 / (1 + tau).
        compensate: lambda of Zheng et al. 2017 (arXiv 1609.08326), equation 10; 0: gradients count as they are.
        pull: how values are written on their way to agents.
        replicas: how many hold each slot; 0: 2, where there are two who can.
        slot: how many bytes a slot has; 0: an eighth of the model, within bounds.

    Raises:
        UsageError: one of them cannot be.

    >>> str(Server(4, damped=True))
    'server(4, true)'
    """

    staleness: int | None = None
    damped: bool = False
    compensate: float = 0.0
    pull: Codec = Identity()  # noqa: RUF009
    replicas: int = 0
    slot: int = 0
    kind: ClassVar[str] = "exchange"

    def __post_init__(self) -> None:
        if self.staleness is not None and (type(self.staleness) is not int or self.staleness < 0):
            raise UsageError(f"{self}: staleness counts steps: 0, or such as 4, or none for no bound")
        if not 0 <= self.compensate < math.inf:
            raise UsageError(
                f"{self}: compensate must be 0 or above; 0.04 is usual, and 0 leaves gradients as they are"
            )
        if self.staleness == 0 and (self.damped or self.compensate):
            which = "damped" if self.damped else "compensate"
            raise UsageError(f"{self}: with staleness 0 no gradient is stale; leave {which} out, or say staleness=4")
        if type(self.replicas) is not int or self.replicas < 0:
            raise UsageError(f"{self}: replicas counts the holders of a slot; 2 survives a death, 0 chooses")
        if type(self.slot) is not int or self.slot < 0:
            raise UsageError(f"{self}: slot is a size in bytes, such as 1048576; 0 chooses")
