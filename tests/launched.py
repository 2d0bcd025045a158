"""Scripts to launch in tests, and what is left running of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

RANK = "import os; rank = int(os.environ['STRETTO_RANK'])\n"
COURIER = "import subprocess, sys; courier = subprocess.Popen(['sleep', '600'])\n"
PEER_LOST = "class PeerLost(Exception): pass\n"
KILL = "import signal\ndef kill(number=signal.SIGKILL): os.kill(os.getpid(), number)\n"


def script(*lines: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", "".join(lines)]


def pid_writer(folder: Path) -> str:
    """Leaves the process ids of the agent and of the process it started, complete from the first moment."""
    return (
        f"folder = {str(folder)!r}\n"
        "open(f'{folder}/.{rank}', 'w').write(f'{os.getpid()} {courier.pid}')\n"
        "os.rename(f'{folder}/.{rank}', f'{folder}/{rank}')\n"
    )


def lives(folder: Path) -> str:
    """``life`` counts the lives of this agent, from 1; ``wait(rank, life)`` returns when another has got so far."""
    return (
        f"import time\nfolder = {str(folder)!r}\n"
        "life = 1\n"
        "while os.path.exists(f'{folder}/life-{rank}-{life}'): life += 1\n"
        "open(f'{folder}/life-{rank}-{life}', 'w').close()\n"
        "def wait(rank, life):\n    while not os.path.exists(f'{folder}/life-{rank}-{life}'): time.sleep(0.01)\n"
    )


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def coordinators() -> list[psutil.Process]:
    """Those that this process or its children have started."""
    here = psutil.Process().children(recursive=True)
    living = [p for p in here if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in living if "stretto.launch.coordination" in p.cmdline()]


def running(folder: Path) -> list[int]:
    pids = [int(word) for file in folder.glob("[0-9]*") for word in file.read_text().split()]
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
