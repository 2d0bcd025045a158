"""What users do with an agent works as in one process or is refused in words; when somebody goes the others go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from processes import Died, agents
from torch import Tensor, nn
from torch.nn import functional

import stretto
from stretto.agent import Agent
from stretto.errors import Disagreement, PeerLost, UsageError

pytestmark = pytest.mark.network
every_link = pytest.mark.parametrize("link", ["tcp", "shm", "c10d"])


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def flat(net: nn.Module) -> list[float]:
    return torch.cat([p.detach().double().flatten() for p in net.parameters()]).tolist()


def batches(steps: int, size: int) -> list[list[Tensor]]:
    """``[step][rank]``, 4 samples each."""
    return [[numbers(4, 6, seed=100 * step + rank) for rank in range(size)] for step in range(steps)]


def close(a: list[float], b: list[float], tolerance: float = 1e-6) -> bool:
    x, y = torch.tensor(a), torch.tensor(b)
    return bool((x - y).abs().max() <= tolerance * y.abs().max())


# Like one process on the whole batch, whatever is around the two lines


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


# Parameters that not everybody uses


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.never = nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x: Tensor, second: bool) -> Tensor:
        y: Tensor = self.second(x) if second else self.first(x)
        return y


def unused(agent: Agent) -> list[Any]:
    net = agent.prepare(Branches())
    found = []
    for step in range(3):
        net(torch.ones(1, 2), second=agent.rank == 1 and step != 1).sum().backward()
        found.append([None if p.grad is None else p.grad.flatten().tolist() for p in net.parameters()])
        net.zero_grad()
    return found


@every_link
def test_a_parameter_that_some_use_gets_the_mean_and_one_that_nobody_uses_gets_none(link: str) -> None:
    one, half = [[1.0, 1.0], [1.0]], [[0.5, 0.5], [0.5]]
    nobody = [None, None]
    for life in agents(2, unused, link=link):
        assert life == [[*half, *half, *nobody], [*one, *nobody, *nobody], [*half, *half, *nobody]]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.inside, self.outside = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.outside.weight = self.inside.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outside(torch.tanh(self.inside(x)))
        return y


def tied(agent: Agent) -> list[float]:
    net = Tied()
    agent.prepare(net)
    net(numbers(4, 3, seed=agent.rank)).square().mean().backward()
    assert net.inside.weight is net.outside.weight and net.inside.weight.grad is not None
    grad: list[float] = net.inside.weight.grad.flatten().tolist()
    return grad


@every_link
def test_a_shared_parameter_is_exchanged_once_with_its_whole_gradient(link: str) -> None:
    net = Tied()
    net(torch.cat([numbers(4, 3, seed=r) for r in range(2)])).square().mean().backward()
    assert net.inside.weight.grad is not None
    for life in agents(2, tied, link=link):
        assert close(life, net.inside.weight.grad.flatten().tolist())


def frozen(agent: Agent) -> tuple[bool, list[float]]:
    net = mlp()
    first = net[0]
    assert isinstance(first, nn.Linear)
    first.requires_grad_(False)
    before = first.weight.clone()
    net, optimizer = agent.prepare(net, torch.optim.SGD(net.parameters(), 0.1))
    net(numbers(4, 6, seed=agent.rank)).square().mean().backward()
    optimizer.step()
    return first.weight.grad is None and torch.equal(first.weight, before), flat(net)


@every_link
def test_frozen_parameters_stay_and_are_not_exchanged(link: str) -> None:
    lives = agents(2, frozen, link=link)
    assert lives[0] == lives[1] and lives[0][0] is True


# Several models and optimizers


def gan(agent: Agent, together: bool) -> str:
    torch.manual_seed(agent.rank)
    maker, judge = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    makes, judges = torch.optim.Adam(maker.parameters(), 0.01), torch.optim.SGD(judge.parameters(), 0.01)
    if together:
        maker, judge, makes, judges = agent.prepare(maker, judge, makes, judges)
    else:
        maker, makes = agent.prepare(maker, makes)
        judge, judges = agent.prepare(judge, judges)
    for step in range(4):
        noise = numbers(5, 2, seed=10 * step + agent.rank)
        judges.zero_grad()
        judge(maker(noise).detach()).mean().backward()
        judges.step()
        makes.zero_grad()
        (-judge(maker(noise)).mean()).backward()
        makes.step()
    return agent.digest()


@every_link
@pytest.mark.parametrize("together", [True, False], ids=["one prepare", "two prepares"])
def test_two_models_with_two_optimizers_stay_alike(together: bool, link: str) -> None:
    assert len(set(agents(2, gan, together, link=link))) == 1


# Buffers


def normed(agent: Agent, rule: Any) -> list[list[float]]:
    net = nn.BatchNorm1d(3)
    net = agent.prepare(net, buffers=rule)
    for step in range(3):
        x = numbers(8, 3, seed=10 * step + agent.rank) + agent.rank
        net(x).square().sum().backward()
    assert int(net.num_batches_tracked) == 3
    return [net.running_mean.tolist(), net.running_var.tolist()]


def statistics(rank: int) -> list[list[float]]:
    """What the agent alone would have."""
    net = nn.BatchNorm1d(3)
    for step in range(3):
        net(numbers(8, 3, seed=10 * step + rank) + rank)
    return [net.running_mean.tolist(), net.running_var.tolist()]  # type: ignore[union-attr]


@every_link
def test_buffers_become_the_mean_the_first_agents_or_stay(link: str) -> None:
    """(Running statistics are linear in each batch's: the mean of all steps is the mean of what each has alone.)"""
    lives = agents(2, normed, "mean", link=link)
    assert lives[0] == lives[1]
    for got, a, b in zip(lives[0], statistics(0), statistics(1), strict=True):
        assert torch.allclose(torch.tensor(got), (torch.tensor(a) + torch.tensor(b)) / 2, atol=1e-6)
    lives = agents(2, normed, "broadcast", link=link)
    assert lives[0] == lives[1]
    assert torch.allclose(torch.tensor(lives[0]), torch.tensor(statistics(0)), atol=1e-6)
    lives = agents(2, normed, "local", link=link)
    assert lives == [statistics(0), statistics(1)]


# Start


def starts_otherwise(agent: Agent) -> tuple[str, list[float]]:
    torch.manual_seed(agent.rank)
    norm = nn.BatchNorm1d(3)
    assert norm.running_mean is not None and norm.num_batches_tracked is not None
    norm.running_mean.fill_(agent.rank + 5)
    norm.num_batches_tracked.fill_(agent.rank + 7)
    agent.prepare(nn.Sequential(nn.Linear(3, 3), norm))
    return agent.digest(), [*norm.running_mean.tolist(), float(norm.num_batches_tracked)]


@every_link
def test_all_begin_with_the_first_agents_weights_and_buffers(link: str) -> None:
    lives = agents(3, starts_otherwise, link=link)
    assert len({digest for digest, _ in lives}) == 1
    assert lives[2][1] == [5, 5, 5, 7]


def weighs_much(agent: Agent) -> str:
    """More weights than go through the courier's scratch memory at once, of sizes that do not divide it."""
    torch.manual_seed(agent.rank)
    agent.prepare(nn.Linear(1201, 1301))
    return agent.digest()


def test_weights_larger_than_the_scratch_memory_are_spread_too() -> None:
    assert len(set(agents(2, weighs_much))) == 1


# Refused in words, on every agent that asks for it


def differing(agent: Agent) -> None:
    agent.prepare(nn.Sequential(nn.Linear(4, 4 + (agent.rank == 1)), nn.ReLU()))


def differing_strategies(agent: Agent) -> None:
    agent.prepare(
        nn.Linear(2, 2), strategy="allreduce(topology=ring)" if agent.rank == 1 else "allreduce(topology=star)"
    )


def differing_buffers(agent: Agent) -> None:
    agent.prepare(nn.Linear(2, 2), buffers="local" if agent.rank == 1 else "mean")


def differing_optimizers(agent: Agent) -> None:
    net = nn.Linear(2, 2)
    kind = torch.optim.Adam if agent.rank == 1 else torch.optim.SGD
    agent.prepare(net, kind(net.parameters(), 0.1))


@every_link
@pytest.mark.parametrize(
    ("asks", "word"),
    [
        (differing, "0.weight"),
        (differing_strategies, "topology=ring"),
        (differing_buffers, "buffers local"),
        (differing_optimizers, "Adam"),
    ],
    ids=["models", "strategies", "buffers", "optimizers"],
)
def test_agents_that_bring_different_things_are_all_told_who_and_what(asks: Any, word: str, link: str) -> None:
    ends = agents(3, asks, link=link, keep_errors=True)
    assert all(isinstance(e, Disagreement) for e in ends), ends
    assert len({str(e) for e in ends}) == 1
    assert "agent 1 differs from agent 0" in str(ends[0]) and word in str(ends[0])


def embeds_sparsely(agent: Agent) -> None:
    net = agent.prepare(nn.Embedding(10, 3, sparse=True))
    net(torch.tensor([1, 2])).sum().backward()


@every_link
def test_sparse_gradients_are_refused(link: str) -> None:
    ends = agents(2, embeds_sparsely, link=link, keep_errors=True)
    told = [e for e in ends if not (link == "c10d" and isinstance(e, PeerLost))]  # there one's end is everybody's
    assert told and all(isinstance(e, UsageError) and "sparse=False" in str(e) for e in told)


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        (lambda: (nn.Linear(2, 2), torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)), "no prepared model"),
        (lambda: (nn.Linear(2, 2, device="meta"),), "on meta"),
        (lambda: (nn.Linear(2, 2, dtype=torch.complex64),), "complex64"),
        (lambda: (), "no model"),
        (lambda: (nn.Linear(2, 2), "a string"), "not a str"),
    ],
    ids=["an optimizer of another model", "another device", "another dtype", "nothing", "something else"],
)
def test_what_cannot_be_prepared_is_refused_also_alone(objects: Any, words: str) -> None:
    with stretto.join(environ={}) as agent, pytest.raises(UsageError, match=words):
        agent.prepare(*objects())


def test_a_model_is_prepared_once() -> None:
    with stretto.join(environ={}) as agent:
        net = agent.prepare(nn.Linear(2, 2))
        with pytest.raises(UsageError, match="prepared before"):
            agent.prepare(net)


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


# When somebody goes


def leave(agent: Agent) -> None:
    agent.leave()


def raise_(agent: Agent) -> None:
    raise ValueError("an agent's script is wrong")


def kill_trainer(agent: Agent) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_courier(agent: Agent) -> None:
    assert agent._courier is not None
    os.kill(agent._courier._pid, signal.SIGKILL)


GOES = {"leaves": leave, "raises": raise_, "is killed": kill_trainer, "its courier is killed": kill_courier}


def stop_at(agent: Agent, label: int, step: int, how: str) -> tuple[str, str, list[int]]:
    """Train; at ``step`` agent ``label`` goes, and if it still can it goes on."""
    net = nn.Linear(300, 300)
    net, optimizer = agent.prepare(net, torch.optim.SGD(net.parameters(), 0.01))
    for i in range(40):
        if (agent.label, i) == (label, step):
            GOES[how](agent)
            if how == "leaves":
                return "left", "", []
        net(numbers(2, 300, seed=i)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return "finished", agent.digest(), list(agent.epoch.labels)


@every_link
@pytest.mark.parametrize("how", GOES)
@pytest.mark.parametrize("label", [0, 1])
def test_when_an_agent_goes_the_others_go_on_alike_without_it(label: int, how: str, link: str) -> None:
    ends = agents(3, stop_at, label, 5, how, link=link, keep_errors=True, deadline=20.0)
    gone = ends.pop(label)
    if link == "c10d":
        assert all(isinstance(e, PeerLost) and "link c10d loses all with one" in str(e) for e in ends), ends
    else:
        assert ends[0] == ends[1], ends
        assert ends[0][0] == "finished" and ends[0][2] == sorted({0, 1, 2} - {label})
    match how:
        case "leaves":
            assert gone[0] == "left"
        case "raises":
            assert "script is wrong" in str(gone)
        case "is killed":
            assert gone == Died(signal=signal.SIGKILL)
        case _:
            assert isinstance(gone, Exception) and "courier" in str(gone)


@every_link
def test_agents_go_on_without_one_that_left_before_they_ever_met(link: str) -> None:
    def once(agent: Agent) -> tuple[str, float]:
        return ("left", 0.0) if agent.label == 0 else ("went on", agent.mean(float(agent.label)))

    ends = agents(3, once, link=link, keep_errors=True, deadline=20.0)
    assert ends[0] == ["left", 0.0]
    if link == "c10d":
        assert all(isinstance(e, PeerLost) for e in ends[1:]), ends
    else:
        assert ends[1:] == [["went on", 1.5]] * 2


@every_link
def test_agents_that_leave_one_after_the_other_all_end(link: str) -> None:
    """The last exchange is over for all, and they take their time to go."""

    def once(agent: Agent) -> float:
        mean = agent.mean(float(agent.rank))
        import time

        time.sleep(0.1 * agent.rank)
        return mean

    assert agents(4, once, link=link) == [1.5] * 4
