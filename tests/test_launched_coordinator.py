"""The launcher's coordinator ends with its run, outlives a launcher that others need, and may be killed."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from launched import COURIER, KILL, RANK, coordinators, lives, pid_writer, running, script, wait_until

from stretto.launch.supervise import run_agents


def test_killing_the_coordinator_ends_nobody_else(tmp_path: Path) -> None:
    lines: list[str] = []

    def heard(line: str) -> None:
        lines.append(line)
        if line == "0| here":
            (process,) = coordinators()
            process.kill()
        if line.startswith("stretto"):
            (tmp_path / "go").touch()

    act = f"print('here', flush=True)\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
    assert run_agents(script(RANK, "import time\n", act), 2, on_line=heard) == 0
    assert "stretto: the coordinator was killed by SIGKILL; an agent takes its place" in lines


def test_no_coordinator_outlives_its_run() -> None:
    run_agents(script("pass"), 2)
    assert coordinators() == []


def test_where_agents_elsewhere_hold_the_model_the_last_one_here_is_started_again_too(tmp_path: Path) -> None:
    lines: list[str] = []
    command = script(RANK, KILL, lives(tmp_path), "if life == 1: kill()\n")
    code = run_agents(
        command, 1, first_rank=1, size=2, coordinator="10.0.0.1:29400", secret="s" * 32, on_line=lines.append
    )
    assert (code, lines) == (0, ["stretto: agent 1 was killed by SIGKILL; started again (1st time)"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_a_coordinator_for_agents_elsewhere_ends_when_none_of_them_is_here() -> None:
    address = f"127.0.0.1:{free_port()}"
    assert run_agents(script("pass"), 1, size=2, coordinator=address, hosts_coordinator=True, secret="s" * 32) == 0
    assert coordinators() == []


def test_a_coordinator_for_agents_elsewhere_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    launcher = (
        "import sys; from stretto.launch.supervise import run_agents\n"
        f"run_agents(sys.argv[1:], 2, size=4, coordinator={address!r}, hosts_coordinator=True, secret='s' * 32)"
    )
    command = script(RANK, COURIER, pid_writer(tmp_path), "import time; time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-c", launcher, *command], process_group=0)
    wait_until(lambda: len(list(tmp_path.glob("[0-9]*"))) == 2)
    (coordinator,) = coordinators()
    process.kill()
    process.wait()
    wait_until(lambda: running(tmp_path) == [])
    assert coordinator.is_running()
    coordinator.kill()  # it would end by itself, a moment later
