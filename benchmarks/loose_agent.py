"""One agent of loose.py: ``loose_agent.py ASK``, with the ask as JSON. It trains, and leaves looks and weights.

Nothing is tested here, and nothing is exchanged but what the strategy does: the weights that every agent had at a mark
are written to a file, and tested when the run is over.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from loose_plan import MARKS

import stretto
from stretto import workloads

FOREVER = 1_000_000


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What every agent is told to do."""

    workload: str
    model: str
    data: str | None
    strategy: str
    batch_size: int
    steps: int
    seed: int
    lr: float
    folder: str


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """An agent at a step; ``end``: after the fence at which all become alike. Seconds and bytes since the beginning."""

    step: int
    end: bool
    seconds: float
    waiting: float
    sent: int


class Watch:
    """An agent's looks at itself. The clock stands still meanwhile."""

    def __init__(self, agent: Any, model: torch.nn.Module, folder: Path) -> None:
        self._agent, self._model, self._folder = agent, model, folder
        self._looks: list[Look] = []
        report = agent.report()
        self._waited, self._sent = report.waiting, report.bytes_sent
        self._begin = time.monotonic()

    def look(self, step: int, *, end: bool = False) -> None:
        now, report = time.monotonic(), self._agent.report()
        self._looks.append(
            Look(
                step=step,
                end=end,
                seconds=now - self._begin,
                waiting=report.waiting - self._waited,
                sent=report.bytes_sent - self._sent,
            )
        )
        weights = torch.nn.utils.parameters_to_vector(self._model.parameters())
        weights.detach().numpy().tofile(self._folder / weights_file(self._agent.label, step, end=end))
        self._begin += time.monotonic() - now

    def leave(self) -> None:
        path = self._folder / looks_file(self._agent.label)
        path.write_bytes(msgspec.json.encode(self._looks))


def looks_file(label: int) -> str:
    return f"looks-{label}.json"


def weights_file(label: int, step: int, *, end: bool) -> str:
    """float32, in the order of the model's parameters."""
    return f"weights-{label}-{step}{'-end' if end else ''}"


def run(ask: Ask) -> None:
    """``steps`` steps, as any script would train, with a look at every ``MARKS``-th and at the end."""
    torch.set_num_threads(1)
    workload = replace(workloads.get(ask.workload), lr=ask.lr)
    data = workload.load(Path(ask.data) if ask.data else None)
    with stretto.join() as agent:
        torch.manual_seed(ask.seed)
        model = workload.model(ask.model)
        model, optimizer = agent.prepare(model, workload.optimizer(model), strategy=ask.strategy)
        agent.mean(0.0)  # everybody is here: the clocks start together
        watch = Watch(agent, model, Path(ask.folder))
        shard = agent.shard(data.train, ask.batch_size, epochs=FOREVER, seed=ask.seed)
        for step, (x, y) in enumerate(shard, 1):
            workload.loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % MARKS == 0:
                watch.look(step)
            if step == ask.steps:
                break
        agent.synchronise()
        watch.look(ask.steps, end=True)
        watch.leave()


if __name__ == "__main__":
    run(msgspec.json.decode(sys.argv[1], type=Ask))
