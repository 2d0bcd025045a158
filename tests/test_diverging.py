"""A training that leaves the finite numbers ends, at all agents alike, and says where to begin again."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from processes import agents
from torch.nn import functional

from stretto.agent import Agent
from stretto.checkpoint import Checkpoints, restore
from stretto.cli import stretto as command
from stretto.errors import Diverged, ScriptFailed

pytestmark = pytest.mark.network


def diverge(agent: Agent, strategy: str, lr: float, place: str) -> None:
    """Mean squares grow without bound where a rate is too large; but one checkpoint is whole before."""
    torch.manual_seed(1)
    net = torch.nn.Linear(4, 1)
    net, optimizer = agent.prepare(net, torch.optim.SGD(net.parameters(), lr=lr), strategy=strategy)
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(60, 4, generator=generator), torch.randn(60, 1, generator=generator)
    shard = agent.shard((x, y), 4, epochs=100, seed=3)
    agent.checkpoint(place, every=0.0)
    for step, (given, wanted) in enumerate(shard):
        while step == 8 and Checkpoints(place, say=lambda _: None).latest() is None:
            time.sleep(0.01)
        functional.mse_loss(net(given), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()


def one_breaks(agent: Agent, strategy: str) -> None:
    """One agent's weights are no numbers after its 6th batch."""
    net = torch.nn.Linear(4, 1)
    net, optimizer = agent.prepare(net, torch.optim.SGD(net.parameters(), lr=0.01), strategy=strategy)
    x, y = torch.randn(60, 4), torch.randn(60, 1)
    for step, (given, wanted) in enumerate(agent.shard((x, y), 4, epochs=100), 1):
        worse = math.nan if (step, agent.rank) == (6, 1) else 1.0
        (worse * functional.mse_loss(net(given), wanted)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize(
    ("strategy", "lr"),
    [
        ("diloco(2, 50.0)", 0.05),
        ("diloco(2, 50.0, codec=int8)", 0.05),
        ("streaming_diloco(4, 2, 2, outer_lr=50.0, codec=int4)", 0.05),
        ("local_sgd(3)", 9.0),
        ("gossip_sgd(ring, settle=4)", 9.0),
    ],
)
def test_a_rate_that_diverges_ends_the_run_naming_the_step_and_the_last_good_checkpoint(
    strategy: str, lr: float, link: str, tmp_path: Path
) -> None:
    ends = agents(3, diverge, strategy, lr, str(tmp_path), link=link, keep_errors=True)
    steps = set()
    for end in ends:
        assert isinstance(end, Diverged), ends
        found = re.fullmatch(
            r"after (\d+) steps weights are not finite: lower the learning rate, or the outer one; "
            rf"the last good checkpoint is of step (\d+): {tmp_path}/(\S+)",
            str(end),
        )
        assert found, end
        assert 0 < int(found[2]) < int(found[1])
        assert (tmp_path / found[3]).exists()
        steps.add(found[1])
    assert len(steps) == 1
    places = Checkpoints(tmp_path, say=lambda _: None)
    last = places.latest()
    assert last is not None
    tree = restore(*places.shared(last))
    assert all(x.isfinite().all() for x in tree["models"][0].values())


@pytest.mark.parametrize(
    "strategy",
    ["local_sgd(4)", "diloco(4, codec=feedback(topk(0.5)))", "eager_diloco(4, codec=int8)", "gossip_sgd(settle=4)"],
)
def test_where_one_agent_has_diverged_all_end(strategy: str) -> None:
    ends = agents(3, one_breaks, strategy, keep_errors=True)
    assert {(type(end), str(end)) for end in ends} == {(Diverged, str(ends[0]))}
    assert str(ends[0]).endswith("or the outer one; no checkpoints were asked for")


def test_the_command_fails_and_says_it_in_a_line(tmp_path: Path) -> None:
    asked = ["--agents", "2", "--strategy", "diloco(2, 1e30)", "--epochs", "2", "--checkpoint", str(tmp_path)]
    done = CliRunner().invoke(command, ["train", "digits", *asked])
    assert isinstance(done.exception, ScriptFailed) and "exit code 7" in str(done.exception)
    assert "stretto: after 4 steps weights are not finite" in done.output and "Traceback" not in done.output
