"""The whole agent but for sockets and autograd, in virtual time, while everything goes wrong that can."""

from stretto.simulate.faults import MIXES, Fault
from stretto.simulate.promises import Broken
from stretto.simulate.storm import Break, Setting, Tally, coded, examine, listed, merged, play, schedule, storm, trace
from stretto.simulate.world import World

__all__ = [
    "MIXES",
    "Break",
    "Broken",
    "Fault",
    "Setting",
    "Tally",
    "World",
    "coded",
    "examine",
    "listed",
    "merged",
    "play",
    "schedule",
    "storm",
    "trace",
]
