"""The simulated world: the same strategies on a virtual clock and a virtual network, in one thread."""

from stretto.sim.link import SimLink
from stretto.sim.network import SimNetwork, Wire
from stretto.sim.world import World

__all__ = ["SimLink", "SimNetwork", "Wire", "World"]
