"""What users do with an agent works as in one process, whatever is around the two lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import batches, close, every_link, flat, mlp, numbers
from processes import agents
from torch import Tensor, nn
from torch.nn import functional

import stretto
from stretto.agent import Agent

pytestmark = pytest.mark.network


def plain(net: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Tensor], agent: Agent | None) -> None:
    (net(torch.cat(parts)).square().mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def keeping_gradients(
    net: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Tensor], agent: Agent | None
) -> None:
    (net(torch.cat(parts)).square().mean()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def clipping(net: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Tensor], agent: Agent | None) -> None:
    """The norm is that of the gradient of the whole batch: clipped at 0.1, well below it."""
    (net(torch.cat(parts)).square().mean()).backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    assert norm > 0.1
    optimizer.step()
    optimizer.zero_grad()


def accumulating(net: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Tensor], agent: Agent | None) -> None:
    """One agent's samples in four pieces, of which the last exchanges; one process takes them at once."""
    if agent is None:
        return plain(net, optimizer, parts, None)
    (mine,) = parts
    with agent.accumulate():
        for x in mine[:3]:
            (net(x[None]).square().mean() / 4).backward()
    (net(mine[3:]).square().mean() / 4).backward()
    optimizer.step()
    optimizer.zero_grad()


def scaling(net: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Tensor], agent: Agent | None) -> None:
    """A GradScaler that starts so high that its first steps overflow, on every agent alike."""
    scaler = _scalers.setdefault(id(net), torch.amp.GradScaler("cpu", init_scale=2.0**127))
    scaler.scale(net(torch.cat(parts)).square().mean()).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


_scalers: dict[int, torch.amp.GradScaler] = {}


def scheduling(net: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Tensor], agent: Agent | None) -> None:
    if "halved" not in optimizer.defaults:
        optimizer.defaults["halved"] = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    plain(net, optimizer, parts, agent)
    optimizer.defaults["halved"].step()


def twice_backward(net: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Tensor], agent: Agent | None) -> None:
    """Two backwards without zero_grad between them add up, as they do in one process."""
    x = torch.cat(parts)
    net(x).square().mean().backward()
    net(x).abs().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


STEPS: dict[str, Callable[..., None]] = {
    "plain": plain,
    "zero_grad(set_to_none=False)": keeping_gradients,
    "clip_grad_norm_": clipping,
    "accumulate": accumulating,
    "GradScaler": scaling,
    "lr_scheduler": scheduling,
    "two backwards": twice_backward,
}


def follow(agent: Agent, step: str) -> tuple[list[float], str]:
    net = mlp()
    net, optimizer = agent.prepare(net, torch.optim.AdamW(net.parameters(), 0.01))
    for parts in batches(5, agent.size):
        STEPS[step](net, optimizer, [parts[agent.rank]], agent)
    return flat(net), agent.digest()


@every_link
@pytest.mark.parametrize("step", STEPS)
def test_a_training_loop_does_what_it_does_in_one_process(step: str, link: str) -> None:
    net = mlp()
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    for parts in batches(5, 3):
        STEPS[step](net, optimizer, parts, None)
    lives = agents(3, follow, step, link=link)
    assert len({digest for _, digest in lives}) == 1
    assert close(lives[0][0], flat(net), 1e-5)


def autocast(agent: Agent) -> str:
    net = mlp()
    net, optimizer = agent.prepare(net, torch.optim.SGD(net.parameters(), 0.1))
    for parts in batches(3, agent.size):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = net(parts[agent.rank]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.tensor(flat(net)).isfinite().all()
    return agent.digest()


@every_link
def test_autocast_to_bfloat16_trains_all_agents_alike(link: str) -> None:
    assert len(set(agents(2, autocast, link=link))) == 1


def in_dtype(agent: Agent, name: str) -> list[Any]:
    dtype = getattr(torch, name)
    net = agent.prepare(mlp().to(dtype), buffers="mean")
    net(torch.full((1, 6), float(agent.rank + 1), dtype=dtype)).sum().backward()
    grads = [p.grad for p in net.parameters()]
    assert all(g is not None and g.dtype == dtype for g in grads)
    return [g.double().flatten().tolist() for g in grads if g is not None]


@every_link
@pytest.mark.parametrize(
    ("name", "tolerance"), [("float64", 1e-12), ("float32", 1e-6), ("bfloat16", 0.03), ("float16", 0.005)]
)
def test_models_of_any_floating_dtype_are_averaged_in_it(name: str, tolerance: float, link: str) -> None:
    lives = agents(2, in_dtype, name, link=link)
    assert lives[0] == lives[1]
    dtype = getattr(torch, name)
    net = mlp().to(dtype)
    whole = torch.stack([torch.full((6,), float(r + 1), dtype=dtype) for r in range(2)])
    (net(whole).sum() / 2).backward()
    for got, p in zip(lives[0], net.parameters(), strict=True):
        assert p.grad is not None
        assert close(got, p.grad.double().flatten().tolist(), tolerance)


# Alone


def test_alone_everything_works_and_nothing_is_sent() -> None:
    with stretto.join(environ={}) as agent:
        assert (agent.rank, agent.size) == (0, 1)
        net = mlp()
        net, optimizer = agent.prepare(net, torch.optim.SGD(net.parameters(), 0.1))
        other = mlp()
        reference = torch.optim.SGD(other.parameters(), 0.1)
        for x, y in agent.shard((numbers(20, 6, seed=1), torch.arange(20) % 3), 4, epochs=2):
            for n, o in ((net, optimizer), (other, reference)):
                functional.cross_entropy(n(x), y).backward()
                o.step()
                o.zero_grad()
        with agent.accumulate():
            net(torch.ones(1, 6)).sum().backward()
        assert flat(net) == flat(other)
        assert agent.mean(3.5) == 3.5
        assert len(agent.digest()) == 32
        report = agent.report()
        assert (report.bytes_sent, report.wire_sent, report.connections, report.waiting) == (0, 0, 0, 0.0)


def test_one_agent_of_one_is_alone_too() -> None:
    assert agents(1, lambda agent: (agent.size, agent.mean(2.0))) == [[1, 2.0]]


@every_link
def test_the_mean_of_a_number_is_the_same_everywhere(link: str) -> None:
    lives = agents(3, lambda agent: [agent.mean(0.1 * (agent.rank + 1)) for _ in range(50)], link=link)
    assert lives[0] == lives[1] == lives[2]
    assert lives[0][0] == pytest.approx(0.2)
