"""``stretto bench memory``: what the trainer and its courier take at their peak, in copies of the gradients.

Peaks are the kernel's (``VmHWM``), reset before each part. The same model first trains without an exchange; what
``prepare()`` and the steps after it add is counted over both processes, memory that they share once. Processes cost a
constant beside; so two models are measured, and the copies are the slope between them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from stretto.bench import team as teams
from stretto.bench.report import Section, number
from stretto.bench.team import Team

WIDTHS: Final = (1024, 3072)
DEPTH: Final = 6
STEPS: Final = 4
GOAL: Final = 1.0
LINKS: Final = ("tcp", "shm")
MB = 1e6


def run(command: str, say: Callable[[str], None]) -> Section:
    """Two agents, each link, a small model and a large one."""
    cells: list[tuple[str, ...]] = []
    data: list[dict[str, Any]] = []
    for link in LINKS:
        found = [next(iter(teams.run(2, member, {"link": link, "width": w}, epochs=(link,)))) for w in WIDTHS]
        small, large = found
        copies = (large["grown"] - small["grown"]) / (large["gradients"] - small["gradients"])
        for f in found:
            cells.append(
                (link, number(f["gradients"] / MB), number(f["bare"] / MB), number(f["grown"] / MB), "", "", "")
            )
        cells.append((link, "slope", "", "", number(copies), f"{GOAL:g}", "yes" if copies <= GOAL else "no"))
        data.append({"link": link, "copies": copies, "found": found})
        say(f"{link}: {copies:.2f} extra copies of the gradients")
    headers = ("link", "gradients, MB", "trainer alone, MB", "agent adds, MB", "extra copies", "goal", "reached")
    about = "Peaks of trainer and courier together, over training without an exchange in the same process."
    return Section(title="Memory", command=command, about=about, headers=headers, cells=tuple(cells), data=data)


def member(team: Team, ask: dict[str, Any]) -> None:
    """What each process does."""
    width = ask["width"]
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(DEPTH)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(8, width)

    def train() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()

    train()
    _forget_peak()
    train()
    bare = _field(os.getpid(), "VmHWM")
    optimizer.zero_grad()
    before = _children()
    agent = team.agent(ask["link"], ask["link"])
    courier = (_children() - before).pop()
    at_first = _own(courier)
    _forget_peak()
    agent.prepare(model, optimizer)
    train()
    trainer = _field(os.getpid(), "VmHWM") - bare
    beside = _own(courier) - at_first
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    team.tell({"gradients": gradients, "bare": bare, "grown": trainer + beside, "trainer": trainer, "courier": beside})
    agent.leave()


def _own(pid: int) -> int:
    """A courier's peak without the memory that it shares with trainers, which is counted there."""
    return _field(pid, "VmHWM") - _field(pid, "RssShmem")


def _field(pid: int, name: str) -> int:
    """Bytes of a field of ``/proc/PID/status``."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()}
