"""Starting the agents of a training job, listening to them, and collecting what they leave."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from stretto.cli import INTERRUPTED
from stretto.errors import ScriptFailed
from stretto.launch.supervise import USUAL, Care, run_agents
from stretto.workloads.folder import NEWS, outcomes
from stretto.workloads.result import Job, Progress, Result, combine


def launch(
    job: Job,
    agents: int,
    show: Callable[[Progress], None],
    say: Callable[[str], None],
    care: Care = USUAL,
    *,
    servers: int = 0,
) -> Result:
    """Train with ``agents`` processes on this machine, and ``servers``.

    ``show`` gets their progress, ``say`` the lines they print. The result is of those that finished; ``say`` is told
    who did not.

    Raises:
        KeyboardInterrupt, SystemExit: a signal ended the agents.
        ScriptFailed: an agent failed, and has said why; or none left an outcome.
    """
    with tempfile.TemporaryDirectory(prefix="stretto-") as name:
        folder = Path(name)
        job = msgspec.structs.replace(job, folder=name)
        command = [sys.executable, "-m", "stretto.workloads.job", msgspec.json.encode(job).decode()]
        with _listening(folder, show):
            code = run_agents(command, agents, servers=servers, link=job.link, care=care, on_line=say)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            sys.exit(code)
        left = list(outcomes(folder, agents))
    if not left:
        raise ScriptFailed(f"all {agents} agents ended without an outcome; run again, and report it if it comes back")
    missing = sorted(set(range(agents)) - {outcome.rank for outcome in left})
    if missing:
        who = f"agent{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
        say(f"stretto: the result is of {len(left)} of {agents} agents: {who} did not finish")
    return combine(job, left)


@contextmanager
def _listening(folder: Path, show: Callable[[Progress], None]) -> Iterator[None]:
    """Read the FIFO in a thread. The end of writing is our own: with it open here the pipe never ends, until we do."""
    os.mkfifo(folder / NEWS, 0o600)
    pipe = os.open(folder / NEWS, os.O_RDWR | os.O_CLOEXEC)
    reader = threading.Thread(target=_read, args=(pipe, show), name="progress", daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.write(pipe, b"end\n")
        reader.join()
        os.close(pipe)


def _read(pipe: int, show: Callable[[Progress], None]) -> None:
    rest = b""
    while True:
        *lines, rest = (rest + os.read(pipe, 65536)).split(b"\n")
        for line in lines:
            if line == b"end":
                return
            with suppress(msgspec.DecodeError):
                show(msgspec.json.decode(line, type=Progress))
