"""Every registered part, so that a new one inherits the suites by being registered."""

from __future__ import annotations

from stretto import codecs, outers, schedules, strategies, topologies
from stretto.core import Codec, Topology
from stretto.text import names, parse

REGISTERED = (codecs, outers, schedules, strategies, topologies)
KINDS = ("codec", "outer", "schedule", "strategy", "topology")


def all_topologies() -> list[Topology]:
    return [parse(name, "topology") for name in names("topology")]


def graphs() -> list[Topology]:
    """Topologies that are graphs: all but the link's own all-reduce."""
    compositions = ["hierarchical(star, tree)", "hierarchical(tree, butterfly)", "hierarchical(double_tree, ring)"]
    return [t for t in all_topologies() if str(t) != "native"] + [parse(c, "topology") for c in compositions]


def all_codecs() -> list[Codec]:
    return [parse(name, "codec") for name in names("codec")]
