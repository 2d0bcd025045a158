"""What an agent counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """What an agent has counted so far.

    ``bytes_*`` went through its connections, frames and all (an average in shared memory moves none); ``wire_*`` add
    TCP/IP and Ethernet headers and retransmissions as the kernel counts them (0 on Unix sockets). ``waiting``: seconds
    for which the trainer stood still for an exchange; ``courier_cpu``: CPU seconds of the process beside it, and
    ``codec_cpu`` those of them that its codecs took. They made ``coded`` bytes of ``dense`` ones. ``staleness``: with
    servers, how many pushes came how many pushes late, as of the last fence (of the first slot, for all agents).
    """

    bytes_sent: int
    bytes_received: int
    wire_sent: int
    wire_received: int
    connections: int
    waiting: float
    seconds: float
    courier_cpu: float
    codec_cpu: float
    dense: int
    coded: int
    staleness: dict[int, int]
