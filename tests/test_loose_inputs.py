"""What a loose strategy cannot be asked for: refused where it is written, naming the argument and what would do."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from trainings import model

import stretto
from stretto.buckets import Room
from stretto.cli import stretto as command
from stretto.core import Strategy
from stretto.drifts import Drifts
from stretto.errors import UsageError
from stretto.text import names, parse

WRITTEN = [
    "asp(codec=int8, pull=int4, damped=true, compensate=0.04, replicas=3, slot=65536)",
    "async_easgd(4, 0.2, settle=8, codec=int8)",
    "bsp(codec=int8, pull=int4, replicas=3, slot=65536)",
    "decoupled_diloco(8, 0.75, 0.2, 0.6, 0.8, settle=24, codec=int8)",
    "async_gossip(4, settle=8, codec=int8)",
    "delayed(allreduce(topology=ring, codec=int8))",
    "delayed_nesterov(16, 0.5, 0.8, staleness=2, codec=int8, pull=int4, replicas=3, slot=65536)",
    "demo(0.9, 0.1, block=32, topology=ring)",
    "diloco(32, 0.5, 0.8, topology=ring, codec=feedback(topk(0.05)+int4))",
    "eager_diloco(32, 0.5, outer_lr=0.5, outer_momentum=0.8, topology=star, codec=int4)",
    "easgd(4, 0.2, 0.8, topology=tree, codec=int8)",
    "gossip_sgd(torus, 4, rate=0.5, settle=8, codec=int8)",
    "gossip_sgd(given('0-1, 1-2'))",
    "hierarchical_local_sgd(2, 32, topology=ring, codec=int4)",
    "local_sgd(8, topology=ring, codec=int8)",
    "noloco(8, 0.6, 0.4, 0.8, settle=8, codec=int8)",
    "post_local_sgd(10, 8, topology=ring, codec=int8)",
    "push_sum(weights('1/2 1/4; 1/2 3/4'), 2, rate=0.5, settle=8, codec=int8)",
    "sparse_loco(8, 0.1, 0.5, decay=0.9, values=int4, topology=ring)",
    "ssp(8, codec=int8, pull=int4, damped=true, compensate=0.04, replicas=3, slot=65536)",
    "streaming_diloco(32, 8, 2, 0.25, outer_lr=0.5, outer_momentum=0.8, topology=ring, codec=int4)",
]
"""Each with every argument."""


def loose(text: str) -> Strategy:
    strategy: Strategy = parse(text, "strategy")
    return strategy


@pytest.mark.parametrize("text", [*names("strategy"), *WRITTEN])
def test_a_strategy_is_its_text(text: str) -> None:
    strategy = loose(text)
    again = loose(str(strategy))
    assert str(strategy) == str(again) == text
    assert (again, hash(again), again.digest) == (strategy, hash(strategy), strategy.digest)


def test_every_strategy_is_written_here() -> None:
    assert {text.split("(")[0] for text in WRITTEN} == set(names("strategy")) - {"allreduce"}


@pytest.mark.parametrize("name", sorted(set(names("strategy")) - {"allreduce", "asp", "bsp", "delayed", "demo", "ssp"}))
def test_nothing_is_exchanged_after_every_0th_step(name: str) -> None:
    argument = {"hierarchical_local_sgd": "inner"}.get(name, "every")
    with pytest.raises(UsageError, match=r"(every|after).*0.* from 1 on.*\d"):
        parse(f"{name}({argument}=0)", "strategy")


@pytest.mark.parametrize("name", ["async_easgd", "async_gossip", "gossip_sgd", "noloco", "push_sum"])
def test_nothing_is_settled_after_every_0th_step(name: str) -> None:
    with pytest.raises(UsageError, match=r"settle=0 must be .* like 16"):
        parse(f"{name}(settle=0)", "strategy")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("local_sgd(1.5)", r"every\(1.5\).* like 16"),
        ("post_local_sgd(-1)", r"after\(-1, 16\): start from 0 .* after\(100, 16\)"),
        ("hierarchical_local_sgd(8, 8)", "inner=8 must be below outer=8; inner=4, outer=64"),
        ("streaming_diloco(4, 8)", "fragments=8 must be .* from 1 to 4.* use fragments=4"),
        ("streaming_diloco(8, 0)", "fragments=0 must be .* use fragments=4"),
        ("streaming_diloco(8, 4, 3)", "overlap=3 must be from 0 to the 2 steps .* use overlap=2"),
        ("streaming_diloco(8, 4, -1)", "overlap=-1 must be from 0 .* use overlap=2"),
        ("streaming_diloco(mix=1.0)", "mix.*must be from 0 to below 1; 0.5 is usual"),
        ("streaming_diloco(mix=-0.5)", "mix.*0.5 is usual"),
        ("streaming_diloco(outer_lr=0.0)", "outer lr must be above 0; 0.7 is usual"),
        ("diloco(8, -1.0)", "outer lr must be above 0; 0.7 is usual"),
        ("diloco(8, 0.7, 1.0)", "outer momentum must be from 0 to below 1; 0.9 is usual"),
        ("eager_diloco(guess=2.0)", "guess must be from 0 to 1; 1 takes all"),
        ("sparse_loco(fraction=0.0)", "fraction must be above 0"),
        ("sparse_loco(decay=1.5)", "decay must be above 0 and at most 1; .* 0.95 is usual"),
        ("easgd(alpha=0.0)", "alpha must be above 0 and at most 1; alpha 0.1"),
        ("easgd(alpha=1.5)", "alpha must be above 0 and at most 1; alpha 0.1"),
        ("easgd(beta=0.0)", "beta must be above 0 .* beta 0.9"),
        ("async_easgd(alpha=1.0)", "alpha=1.0 must be above 0 and below 1; 0.9 divided by the agents"),
        ("noloco(outer_lr=0.0)", "outer_lr=0.0 must be above 0"),
        ("noloco(outer_momentum=1.0)", "outer_momentum=1.0 .* 0.5 is usual"),
        ("noloco(gamma=2.0)", "gamma=2.0 must be .* 0.75 would do"),
        ("gossip_sgd(rate=0)", "rate=0 .* 1 is usual"),
        ("push_sum(rate=2)", "rate=2 .* 1 is usual"),
        ("gossip_sgd(given('0-1, 2-3'))", r"edges leave 2 agents .* given\('0-1, 2-3, 0-2'\) would do"),
        ("gossip_sgd(weights('1/2 2/3; 1/2 1/4'))", r"rows give column 1 a sum of 11/12.* as in weights\('1/2"),
        ("push_sum(weights('1/2 0; 1/2 1'))", r"rows do not connect: agent 1 .* see weights\('1/2"),
        ("gossip_sgd(directed_ring)", "graph=directed_ring .* graph=exponential"),
        ("gossip_sgd(codec=lowrank)", "codec=lowrank .* codec=int8"),
        ("push_sum(codec=lowrank)", "codec=lowrank .* codec=int8"),
        ("noloco(codec=lowrank)", "codec lowrank .* int8"),
        ("async_gossip(codec=lowrank)", "codec lowrank .* int8"),
        ("async_easgd(codec=lowrank)", "codec lowrank .* int8"),
        ("delayed(local_sgd)", "local_sgd exchanges no gradients; eager_diloco"),
        ("delayed(steps=2)", "use steps=1"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_do(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(text, "strategy")


def test_there_are_no_more_fragments_than_parameters() -> None:
    net = model()
    with pytest.raises(UsageError, match=r"streaming_diloco\(16, 8\): 8 fragments of 6 parameters: give at most"):
        Drifts([net], loose("streaming_diloco(16, 8)"), Room(lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8)))
    with stretto.join(environ={}) as agent, pytest.raises(UsageError, match="8 fragments of 6 parameters"):
        agent.prepare(net, strategy="streaming_diloco(16, 8)")


def test_the_command_refuses_before_anybody_starts() -> None:
    done = CliRunner().invoke(command, ["train", "digits", "--strategy", "streaming_diloco(4, 8)"])
    assert isinstance(done.exception, UsageError) and "use fragments=4" in str(done.exception)
