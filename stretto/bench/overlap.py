"""``stretto bench overlap``: how much of the exchange hides behind backward, with a core free for it and with none.

With as many agents as cores, trainers that compute leave no core to their couriers, and little can hide. So one of the
two models sleeps in its backward, as long as computing might take, and leaves its core free, as the host of a GPU
would. The other computes.

    hidden = 1 - (step with exchange - step without) / the same buckets exchanged alone
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stretto import strategies
from stretto.bench import team as teams
from stretto.bench.measure import Spread, spread, take_turns
from stretto.bench.ours import rooms
from stretto.bench.peers import Gloo
from stretto.bench.report import Section, spread_text
from stretto.bench.team import Team, free_port
from stretto.buckets import plan_buckets

LAYERS: Final = 8
WIDTH: Final = 1024
"""A layer's gradient is a bucket: 4 MiB."""
NAP: Final = 0.010
"""Seconds that a layer's backward takes when it sleeps."""
BATCH: Final = 192
"""Rows of a batch when it computes: backward then takes about as long."""
ROUNDS: Final = 20
GOAL: Final = 0.6
DDP: Final = "DDP (Gloo)"
LINKS: Final = ("tcp", "shm")


class Nap(torch.autograd.Function):
    """Identity; its backward sleeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        time.sleep(NAP)
        return grad


class Stack(nn.Module):
    """Layers of one bucket each; ``naps``: each sleeps before its gradient is ready."""

    def __init__(self, *, naps: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
        self._naps = naps

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if self._naps:
                x = Nap.apply(x)  # type: ignore[no-untyped-call]
        return x


def run(command: str, say: Callable[[str], None]) -> Section:
    """Two agents, a backward that sleeps and one that computes."""
    cells: list[tuple[str, ...]] = []
    data: list[dict[str, Any]] = []
    for naps in (True, False):
        for cell in teams.run(
            2, member, {"naps": naps, "port": free_port()}, epochs=("tcp", "shm", "tcp alone", "shm alone")
        ):
            case = "sleeps: a core is free" if naps else "computes: none is free"
            for name in (*LINKS, DDP):
                share = hidden(cell, name)
                reached = ("yes" if share.median >= GOAL else "no") if naps and name != DDP else ""
                alone = spread([1e3 * t for t in cell[f"{name} alone"]])
                extra = spread([1e3 * (a - b) for a, b in zip(cell[name], cell["no exchange"], strict=True)])
                row = (
                    case,
                    name,
                    spread_text(alone),
                    spread_text(extra),
                    f"{100 * share.median:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})",
                )
                cells.append((*row, f"{100 * GOAL:.0f} %" if reached else "", reached))
                data.append(
                    {
                        "backward": case,
                        "who": name,
                        "hidden": share,
                        "alone_ms": alone,
                        "extra_ms": extra,
                        "seconds": cell,
                    }
                )
                say(f"backward {case}, {name}: {row[-1]} hidden")
    about = (
        f"2 agents, {LAYERS} layers of {WIDTH * WIDTH * 4 >> 20} MiB. Hidden is 1 - (step with exchange - step "
        f"without) / the same buckets exchanged alone. Backward sleeps {1e3 * NAP:.0f} ms a layer, which leaves a core "
        f"free as a GPU would, or computes on {BATCH} rows."
    )
    headers = ("backward", "who", "exchange alone, ms", "step grows by, ms", "hidden", "goal", "reached")
    return Section(title="Overlap", command=command, about=about, headers=headers, cells=tuple(cells), data=data)


def hidden(seconds: dict[str, list[float]], name: str) -> Spread:
    """The share of each round's exchange that a step did not feel.

    >>> hidden({"no exchange": [1.0], "tcp": [1.1], "tcp alone": [0.4]}, "tcp").median
    0.75
    """
    rounds = zip(seconds[name], seconds["no exchange"], seconds[f"{name} alone"], strict=True)
    return spread([round(1 - (with_it - without) / alone, 6) for with_it, without, alone in rounds])


def member(team: Team, ask: dict[str, Any]) -> None:
    """What each process does."""
    agents = {link: team.agent(link, link) for link in LINKS}
    sizes = [plan.numel for plan in plan_buckets([(WIDTH * WIDTH, torch.float32)] * LAYERS)]
    alone = {f"{link} alone": _by_courier(team, link, sizes) for link in LINKS}
    gloo = Gloo(team, ask["port"])
    x = torch.randn(1 if ask["naps"] else BATCH, WIDTH)
    turns = {
        "no exchange": _step(Stack(naps=ask["naps"]), x),
        **{link: _step(agent.prepare(Stack(naps=ask["naps"])), x) for link, agent in agents.items()},
        DDP: _step(DistributedDataParallel(Stack(naps=ask["naps"])), x),
        **alone,
        f"{DDP} alone": _by_gloo(gloo, sizes),
    }
    team.tell(take_turns(team, turns, ROUNDS))
    for agent in agents.values():
        agent.leave()
    gloo.close()


def _step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        model(x).sum().backward()

    return step


def _by_courier(team: Team, link: str, sizes: list[int]) -> Callable[[], None]:
    courier = team.courier(f"{link} alone", link)
    courier.use(0, str(strategies.allreduce()), native=courier.apart)
    pairs = [rooms(courier, n) for n in sizes]

    def exchange() -> None:
        for wait in [courier.mean(0, x, mean, bucket=i, of=len(pairs)) for i, (x, mean) in enumerate(pairs)]:
            wait()

    return exchange


def _by_gloo(gloo: Gloo, sizes: list[int]) -> Callable[[], None]:
    tensors = [gloo.room(n) for n in sizes]

    def exchange() -> None:
        for wait in [gloo.begin(x) for x in tensors]:
            wait()

    return exchange
