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


CODECS = (
    "int8(stochastic=true)",
    "int4(block=64, stochastic=true)",
    "int2(stochastic=true)",
    "fp8(format='e5m2')",
    "topk(0.1, sampled=true)",
    "randomk(0.1, scaled=false)",
    "threshold(0.5, most=0.2)",
    "dct_topk(0.25)",
    "lowrank(1)",
    "topk(0.1)+int4",
    "randomk(0.1, scaled=false)+int8",
    "threshold(0.5)+fp16",
    "feedback(sign)",
    "feedback(int4)",
    "feedback(lowrank(2), decay=0.9)",
    "feedback(randomk(0.1, scaled=false))",
    "feedback(topk(0.1)+int4)",
    "feedback(topk(0.03)+int2, decay=0.95)",
    "feedback(dct_topk(0.0078125), decay=0.999)",
    "per_layer({biases: identity, norms: bf16, 'embed.*': int4}, rest=topk(0.1))",
    "feedback(per_layer({embeddings: sign}, rest=int4))",
)
"""Compositions and other settings that people use."""


def all_codecs() -> list[Codec]:
    return [parse(text, "codec") for text in (*names("codec"), *CODECS)]
