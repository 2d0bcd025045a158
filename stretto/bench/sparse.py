"""Sparse pushes: an embedding of a million rows of which a batch touches a few thousand, against the same one dense.

Both are trained by the same script but for ``sparse=True``. A step is forward, backward, push and pull. Bytes are those
that an agent sends and receives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from stretto.bench import team as teams
from stretto.bench.measure import ratio, spread, take_turns
from stretto.bench.report import Section, number, spread_text
from stretto.bench.team import Team
from stretto.errors import StrettoError

AGENTS: Final = 2
ROWS: Final = 1_000_000
WIDTH: Final = 64
TOUCHED: Final = 4096
STEPS: Final = {"sparse": 10, "dense": 1}
"""In a turn."""
ROUNDS: Final = 8
STRATEGY: Final = "asp()"
FEWER: Final = 50
"""Times fewer bytes than the dense push, at least."""
QUICKER: Final = 10
"""Times the steps a second of the dense push, at least."""


class Trainee:
    """An embedding whose rows are pulled towards zero, in one agent."""

    def __init__(self, team: Team, kind: str) -> None:
        self._agent = team.agent(kind, "tcp")
        torch.manual_seed(0)
        self._table = nn.Embedding(ROWS, WIDTH, sparse=kind == "sparse")
        optimizer = torch.optim.SGD(self._table.parameters(), lr=1.0)
        self._table, self._optimizer = self._agent.prepare(self._table, optimizer, strategy=STRATEGY)
        generator = torch.Generator().manual_seed(team.rank)
        self._batches = [torch.randint(ROWS, (TOUCHED,), generator=generator) for _ in range(16)]
        self.steps = 0

    def turn(self, steps: int) -> None:
        for _ in range(steps):
            self._loss(self._batches[self.steps % len(self._batches)]).backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.steps += 1

    def _loss(self, rows: Tensor) -> Tensor:
        found: Tensor = self._table(rows)
        return 0.05 * found.square().sum()

    def bytes(self) -> int:
        report = self._agent.report()
        return report.bytes_sent + report.bytes_received

    def check(self) -> None:
        """
        Raises:
            StrettoError: training did not move what it should, or moved what it should not.
        """
        touched = self._batches[0]
        torch.manual_seed(0)
        before = nn.Embedding(ROWS, WIDTH).weight.detach()
        now = self._table.weight.detach()
        if not bool((now[touched].norm(dim=1) < before[touched].norm(dim=1)).all()):
            raise StrettoError("rows that were trained did not move")

    def leave(self) -> None:
        self._agent.leave()


def run(command: str, say: Callable[[str], None], rounds: int | None = None) -> Section:
    """Measure.

    Raises:
        ScriptFailed: a process of the benchmark failed, or a result was wrong.
    """
    (found,) = teams.run(AGENTS, member, {"rounds": rounds or ROUNDS}, epochs=tuple(STEPS))
    seconds = {kind: [s / steps for s in found["seconds"][kind]] for kind, steps in STEPS.items()}
    nbytes = found["bytes"]
    quicker, fewer = ratio(seconds["dense"], seconds["sparse"]), nbytes["dense"] / nbytes["sparse"]
    judged = "yes" if quicker.median >= QUICKER and fewer >= FEWER else "no"
    rows = []
    for kind in STEPS:
        ms = spread(seconds[kind], 1e3)
        rows.append((kind, spread_text(ms), number(1e3 / ms.median), number(nbytes[kind] / 1e6)))
        say(f"{kind}: {ms.median:.1f} ms, {nbytes[kind] / 1e6:.2f} MB a step")
    goal = f"{FEWER} times fewer bytes, {QUICKER} times the steps"
    cells = (
        (*rows[0], number(fewer), spread_text(quicker), goal, judged),
        (*rows[1], "", "", "", ""),
    )
    return Section(
        title="Sparse pushes",
        command=command,
        about=f"{AGENTS} agents, `{STRATEGY}`, SGD, an embedding of {ROWS:,} x {WIDTH}, batches of {TOUCHED:,} rows.",
        headers=(
            "push",
            "ms a step",
            "steps/s",
            "MB a step",
            "times fewer bytes",
            "times the steps",
            "goal",
            "reached",
        ),
        cells=cells,
        data={"seconds": seconds, "bytes": nbytes},
    )


def member(team: Team, ask: dict[str, Any]) -> None:
    """What each agent does."""
    trainees = {kind: Trainee(team, kind) for kind in STEPS}
    before = {kind: t.bytes() for kind, t in trainees.items()}
    seconds = take_turns(team, {k: partial(t.turn, STEPS[k]) for k, t in trainees.items()}, ask["rounds"])
    mine = {kind: (t.bytes() - before[kind]) / t.steps for kind, t in trainees.items()}
    nbytes = {kind: max(x for (x,) in team.gather((mine[kind],))) for kind in trainees}
    for trainee in trainees.values():
        trainee.check()
        trainee.leave()
    team.tell({"seconds": seconds, "bytes": nbytes})
