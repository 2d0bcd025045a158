"""``stretto bench step``: training steps, ours, DDP's and those of a process that exchanges nothing, block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from stretto.bench import team as teams
from stretto.bench.measure import Row, rows, take_turns
from stretto.bench.peers import Gloo
from stretto.bench.report import Section, compared
from stretto.bench.team import Team, free_port
from stretto.errors import StrettoError
from stretto.workloads import models

SIDE: Final = 28
BATCH: Final = 32
BLOCK: Final = 3
"""Steps in a turn."""
ROUNDS: Final = 20
DDP, NONE = "DDP (Gloo)", "no exchange"
GOALS: Final = {
    "cnn": {"tcp": {DDP: 1.0}},
    "mlp-10m": {"tcp": {DDP: 1.0}, "shm": {DDP: 0.75}},
}
_CLOSE = 1e-3

MODELS: Final[dict[str, Callable[[], nn.Module]]] = {
    "cnn": lambda: models.cnn(SIDE),
    "mlp-10m": lambda: models.mlp(SIDE, width=2048, depth=3),
}


class Trainee:
    """A model, its optimizer, and a step of theirs; ``wrap`` adds the exchange."""

    def __init__(
        self, make: Callable[[], nn.Module], wrap: Callable[[nn.Module, torch.optim.Optimizer], nn.Module]
    ) -> None:
        torch.manual_seed(0)
        self.bare = make()
        self._optimizer = torch.optim.SGD(self.bare.parameters(), lr=0.01)
        self._model = wrap(self.bare, self._optimizer)

    def step(self, x: Tensor, y: Tensor) -> None:
        self._optimizer.zero_grad()
        cross_entropy(self._model(x), y).backward()
        self._optimizer.step()

    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.bare.parameters()])


def run(
    agents: Sequence[int], links: Sequence[str], names: Sequence[str], command: str, say: Callable[[str], None]
) -> Section:
    """Measure; ``names`` are keys of :data:`MODELS`.

    Raises:
        ScriptFailed: a process failed, or the contenders' weights differ.
    """
    found: list[Row] = []
    for n, name in product(agents, names):
        ask = {"links": links, "model": name, "port": free_port()}
        for cell in teams.run(n, member, ask, epochs=links):
            case = f"{name}, {cell['parameters'] / 1e6:.1f} M"
            of_case = rows(n, case, cell["seconds"], (DDP, NONE), GOALS[name], BLOCK)
            found += of_case
            say(f"{n} agents, {case}: " + ", ".join(f"{r.contender} {r.ms.median:.1f} ms" for r in of_case))
    about = (
        f"Milliseconds a step of forward, backward, exchange and SGD, batches of {BATCH} an agent; turns of {BLOCK} "
        "steps. All train on the same batches, and those that exchange must come to the same weights."
    )
    return compared("Training step", command, about, found, (DDP, NONE))


def member(team: Team, ask: dict[str, Any]) -> None:
    """What each process does. Agents come first: they fork their couriers, and Gloo has threads."""
    make = MODELS[ask["model"]]
    agents = {link: team.agent(link, link) for link in ask["links"]}
    gloo = Gloo(team, ask["port"])
    trainees = {
        NONE: Trainee(make, lambda model, _: model),
        **{link: Trainee(make, lambda m, o, a=a: a.prepare(m, o)[0]) for link, a in agents.items()},  # type: ignore[misc]
        DDP: Trainee(make, lambda model, _: DistributedDataParallel(model)),
    }
    seconds = _measure(team, trainees)
    _compare(team, trainees)
    team.tell({"seconds": seconds, "parameters": sum(p.numel() for p in trainees[NONE].bare.parameters())})
    for agent in agents.values():
        agent.leave()
    gloo.close()


def _measure(team: Team, trainees: dict[str, Trainee]) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(team.rank)
    batches = [
        (torch.rand(BATCH, 1, SIDE, SIDE, generator=generator), torch.randint(10, (BATCH,), generator=generator))
        for _ in range(8)
    ]
    done = dict.fromkeys(trainees, 0)

    def block(name: str) -> None:
        for _ in range(BLOCK):
            trainees[name].step(*batches[done[name] % len(batches)])
            done[name] += 1

    return take_turns(team, {name: partial(block, name) for name in trainees}, ROUNDS)


def _compare(team: Team, trainees: dict[str, Trainee]) -> None:
    right = trainees[DDP].weights()
    for name, trainee in trainees.items():
        off = float((trainee.weights() - right).abs().max())
        if name != NONE and off > _CLOSE:
            raise StrettoError(f"{name}: process {team.rank}'s weights are off from DDP's by {off:.2g}")
        if name == NONE and off < _CLOSE / 1e3:
            raise StrettoError("training without an exchange came to the weights of DDP: nothing was measured")
