"""Carrying out one run of loose.py: on a laboratory's hosts or on this machine, and testing the models it left behind.

What is tested is the mean of the agents' weights: what all would have if training ended there. Equal bits are tested
once: synchronous training has the same at a step on every network, so its curve is measured where that is fast.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import torch
from loose_agent import Ask, Look, looks_file, weights_file
from loose_plan import AGENTS, TUNING_SEED, Network, Plan, Task
from msgspec import Struct
from torch import Tensor

from stretto import workloads
from stretto.errors import ScriptFailed
from stretto.lab.fleet import Fleet
from stretto.lab.storm import to_the_end
from stretto.lab.trial import Place
from stretto.launch.supervise import run_agents
from stretto.workloads.train import judged
from stretto.workloads.workload import Split

AGENT = Path(__file__).resolve().with_name("loose_agent.py")
PATIENCE = 7200.0
"""Seconds of one run."""


class Mark(Struct, frozen=True, kw_only=True):
    """All agents at a step: the slowest one's seconds, their mean waiting and bytes, a digest of all their weights.

    ``end``: after the fence at which all become alike.
    """

    step: int
    end: bool
    seconds: float
    waiting: float
    sent: float
    digest: str
    accuracy: float
    loss: float


class Run(Struct, frozen=True, kw_only=True):
    """What came of a plan: marks in order, or why there are none."""

    plan: Plan
    marks: list[Mark]
    error: str = ""

    @property
    def end(self) -> Mark:
        return self.marks[-1]


class Tester:
    """Tests models of one task; ``known`` are digests that were tested before, with accuracy and loss."""

    def __init__(self, task: Task, data: Path | None, known: dict[str, tuple[float, float]]) -> None:
        self._workload, self._model, self._data = workloads.get(task.workload), task.model, data
        self._known = known
        self._split: Split | None = None

    def test(self, weights: list[np.ndarray[tuple[int], np.dtype[np.float32]]]) -> tuple[str, float, float]:
        """The digest of all agents' weights, and accuracy and loss of their mean."""
        digest = hashlib.blake2b(b"".join(w.tobytes() for w in weights), digest_size=8).hexdigest()
        if digest not in self._known:
            mean = np.mean(weights, axis=0, dtype=np.float64).astype(np.float32)
            self._known[digest] = self._judge(torch.from_numpy(mean))
        return digest, *self._known[digest]

    def _judge(self, weights: Tensor) -> tuple[float, float]:
        self._split = self._split or self._workload.load(self._data).test
        model = self._workload.model(self._model)
        torch.nn.utils.vector_to_parameters(weights, model.parameters())
        right, loss, count = judged(self._workload, model, *self._split)
        return right / count, loss / count


def carry_out(plan: Plan, task: Task, network: Network, data: Path | None, tester: Tester, congestion: str) -> Run:
    """Train, then test what was left; a training that fails is a run, too."""
    with TemporaryDirectory(prefix="stretto-loose-") as name:
        folder = Path(name)
        ask = Ask(
            workload=task.workload,
            model=task.model,
            data=str(data) if data else None,
            strategy=plan.strategy,
            batch_size=task.batch_size,
            steps=plan.steps,
            seed=plan.seed,
            lr=plan.lr,
            folder=name,
        )
        command = [sys.executable, str(AGENT), msgspec.json.encode(ask).decode()]
        try:
            _train(command, network, folder, congestion)
        except ScriptFailed as e:
            return Run(plan=plan, marks=[], error=str(e))
        return Run(plan=plan, marks=_marks(folder, tester, last=plan.seed == TUNING_SEED))


def _train(command: list[str], network: Network, folder: Path, congestion: str) -> None:
    if not network.rate:
        said: list[str] = []
        try:
            run_agents(command, AGENTS, link="tcp", on_line=said.append)
        except ScriptFailed as e:
            raise ScriptFailed(said[-1] if said else str(e)) from e
        return
    place = Place(
        hosts=AGENTS, rate=network.rate, delay=network.delay, loss=network.loss, congestion=congestion or None
    )
    with place.lab() as lab, Fleet(lab, command, folder) as fleet:
        to_the_end(fleet, PATIENCE)


def _marks(folder: Path, tester: Tester, *, last: bool) -> list[Mark]:
    """Or the ``last`` one, or every second one of many, for testing takes time."""
    looks = [msgspec.json.decode((folder / looks_file(n)).read_bytes(), type=list[Look]) for n in range(AGENTS)]
    together = list(zip(*looks, strict=True))
    some = together[1:-1:2] + together[-1:] if len(together) > 8 else together
    return [_mark(folder, one, tester) for one in (together[-1:] if last else some)]


def _mark(folder: Path, looks: tuple[Look, ...], tester: Tester) -> Mark:
    step, end = looks[0].step, looks[0].end
    weights = [np.fromfile(folder / weights_file(n, step, end=end), np.float32) for n in range(AGENTS)]
    digest, accuracy, loss = tester.test(weights)
    return Mark(
        step=step,
        end=end,
        seconds=max(look.seconds for look in looks),
        waiting=sum(look.waiting for look in looks) / AGENTS,
        sent=sum(look.sent for look in looks) / AGENTS,
        digest=digest,
        accuracy=accuracy,
        loss=loss,
    )
