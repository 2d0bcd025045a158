"""Servers as processes: they are there from the first view or later, die and come back, and go when all agents have."""

from __future__ import annotations

import re
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from launched import wait_until

from stretto.launch.supervise import run_agents

SCRIPT = """
import os, signal, sys, time
import torch, stretto
strategy, folder, wait = sys.argv[1:4]
agent = stretto.join(link="tcp")
again = agent.label == 1 and os.path.exists(f"{folder}/died")
if again:
    open(f"{folder}/again", "w").close()
torch.manual_seed(7)
model = torch.nn.Linear(8, 3).double()
model, optimizer = agent.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), strategy=strategy)
data = torch.randn(61, 8, dtype=torch.float64), torch.randint(3, (61,))
shard = agent.shard(data, batch_size=4, epochs=100_000 if wait == "again" else 6)
for i, (x, y) in enumerate(shard):
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    if agent.label == 0 and shard.drawn == 10:
        open(f"{folder}/halfway", "w").close()
    if agent.label == 1 and shard.drawn == 10 and wait == "again" and not os.path.exists(f"{folder}/died"):
        open(f"{folder}/died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    while wait and shard.drawn == 12 and not os.path.exists(f"{folder}/{wait}"):
        time.sleep(0.01)
    if wait == "again":
        if again and i == 5:
            open(f"{folder}/enough", "w").close()
        if agent.mean(float(os.path.exists(f"{folder}/enough"))) > 0:
            break
agent.synchronise()
print("end", agent.digest(), shard.proof())
"""


def train(
    folder: Path, agents: int, servers: int, strategy: str = "allreduce", wait: str = ""
) -> tuple[list[str], set[str]]:
    """The lines that were said, and how agents ended. At batch 12 all wait for the file ``wait``."""
    path, lines = folder / "train.py", list[str]()
    path.write_text(SCRIPT)
    command = [sys.executable, str(path), strategy, str(folder), wait]
    assert run_agents(command, agents, servers=servers, on_line=lines.append) == 0
    return lines, {line.partition("| ")[2] for line in lines if "| end " in line}


def servers() -> list[psutil.Process]:
    """Those that this process or its children have started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ends meanwhile
            if process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[-2:] == ["stretto.cli", "server"]:
                found.append(process)
    return found


def test_servers_change_nothing_for_a_strategy_that_has_no_use_for_them(tmp_path: Path) -> None:
    _, plain = train(tmp_path, 2, 0)
    lines, served = train(tmp_path, 2, 1)
    assert len(plain) == 1 and served == plain
    (told,) = [line for line in lines if "has no use for" in line]
    assert told.startswith("0| stretto: allreduce has no use for the run's servers (1); use bsp(), ssp(4) or asp()")
    assert not servers()


def test_an_agent_alone_has_servers_too(tmp_path: Path) -> None:
    lines, ends = train(tmp_path, 1, 2)
    assert len(ends) == 1 and "61" in ends.pop(), lines


@pytest.mark.parametrize("strategy", ["allreduce", "local_sgd(4)"])
def test_training_goes_on_when_a_server_is_killed_and_it_comes_back(tmp_path: Path, strategy: str) -> None:
    def kill() -> None:
        try:
            wait_until((tmp_path / "halfway").exists, 150)
            (old,) = servers()
            old.kill()
            wait_until(lambda: [p.pid for p in servers()] not in ([], [old.pid]), 150)
        finally:
            (tmp_path / "back").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    lines, ends = train(tmp_path, 2, 1, strategy, "back")
    killer.join()
    assert "stretto: server 0 was killed by SIGKILL; started again (1st time)" in lines
    assert len(ends) == 1, lines


def test_training_goes_on_when_an_agent_is_killed_beside_servers(tmp_path: Path) -> None:
    lines, ends = train(tmp_path, 3, 1, "allreduce", "again")
    assert "stretto: agent 1 was killed by SIGKILL; started again (1st time)" in lines
    assert len(ends) == 1, lines
    assert sum("| end " in line for line in lines) == 3


def test_a_server_that_is_told_to_go_leaves_well_and_is_not_started_again(tmp_path: Path) -> None:
    def stop() -> None:
        try:
            wait_until((tmp_path / "halfway").exists, 150)
            (server,) = servers()
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: not servers(), 150)
        finally:
            (tmp_path / "gone").touch()

    stopper = threading.Thread(target=stop)
    stopper.start()
    lines, ends = train(tmp_path, 2, 1, "allreduce", "gone")
    stopper.join()
    assert len(ends) == 1, lines
    assert not [line for line in lines if re.search("server 0 (was|ended|lost)", line)]
