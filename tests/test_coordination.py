"""The coordinator's own process: it listens before anybody needs it, outlives its starter, and ends by itself."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from stretto.errors import StrettoError, UsageError
from stretto.launch.coordination import stay
from stretto.launch.coordinator import DONE, Call, Lifeline, start_coordinator
from stretto.links import addresses

SECRET = "a secret of the tests"
MARK = f"test {os.getpid()}"


@dataclass
class Counted:
    """A coordinator that knows who is here, as if from a script: one entry for each time it is asked."""

    here: Iterator[int]
    missing: tuple[int, ...] = ()
    asked: list[int] = field(default_factory=list)

    def present(self) -> int:
        self.asked.append(next(self.here, 0))
        return self.asked[-1]

    def waiting_for(self) -> tuple[int, ...]:
        return self.missing


def coordinators() -> list[psutil.Process]:
    """Those that these tests have started, whosever children they are now."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        info = process.info
        if "stretto.launch.coordination" in (info["cmdline"] or []) and (info["environ"] or {}).get("MARK") == MARK:
            found.append(process)
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(autouse=True)
def _nobody_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MARK", MARK)
    yield
    wait_until(lambda: not coordinators())


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def listens(address: str) -> bool:
    try:
        socket.create_connection(addresses.split(address)).close()
    except ConnectionRefusedError:
        return False
    return True


def ended(word: bytes) -> socket.socket:
    """A lifeline whose other end has said ``word`` and gone."""
    ours, theirs = socket.socketpair()
    ours.sendall(word)
    ours.close()
    return theirs


def test_it_listens_when_the_start_returns_and_ends_when_it_is_dismissed() -> None:
    with start_coordinator(2, SECRET, "127.0.0.1") as lifeline:
        assert listens(lifeline.address)
        (process,) = coordinators()
        assert SECRET not in " ".join(process.cmdline()) and SECRET not in str(process.environ())
    wait_until(lambda: not coordinators())
    assert not listens(lifeline.address)


def test_a_port_that_is_in_use_is_refused_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is in use"):
            start_coordinator(2, SECRET, "127.0.0.1", port, patience=0.0)
    with pytest.raises(UsageError, match="not an address of this machine"):
        start_coordinator(2, SECRET, "203.0.113.1")


def test_it_waits_for_the_port_while_that_of_an_earlier_attempt_ends() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    lifeline = Lifeline()
    process = subprocess.Popen(lifeline.command(), pass_fds=(lifeline.theirs,))
    time.sleep(0.2)
    taken.close()
    call = Call(size=2, secret=SECRET, host="127.0.0.1", port=port, patience=20.0)
    with lifeline:
        assert lifeline.begin(call) == f"127.0.0.1:{port}"
    assert process.wait() == 0


def test_it_does_without_torch() -> None:
    look = "import sys, stretto.launch.coordination; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0


def test_a_process_that_ends_before_it_listens_is_an_error() -> None:
    lifeline = Lifeline()
    with pytest.raises(StrettoError, match="ended before it listened"):
        lifeline.begin(Call(size=2, secret=SECRET, host="", port=0))
    lifeline.close()


def test_it_outlives_a_starter_that_is_killed_and_is_nobodys_child() -> None:
    start = (
        "from stretto.launch.coordinator import start_coordinator\nimport os, time\n"
        f"lifeline = start_coordinator(2, {SECRET!r}, '127.0.0.1')\n"
        "print(lifeline.address, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, process_group=0) as starter:
        assert starter.stdout is not None
        address = starter.stdout.readline().decode().strip()
        (process,) = coordinators()
        assert process.ppid() != starter.pid
        os.killpg(starter.pid, signal.SIGKILL)
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address) and listens(address)
    process.kill()  # it would end by itself, a moment later


@pytest.mark.parametrize("word", [DONE, b""], ids=["dismissed", "its starter was killed"])
def test_it_stays_for_those_who_are_still_here(word: bytes) -> None:
    with ended(word) as lifeline:
        coordinator = Counted(iter([2, 1, 1, 0]))
        stay(coordinator, lifeline, lonely=0.0)
        assert coordinator.asked == [2, 1, 1, 0]


def test_when_its_starter_was_killed_it_waits_a_moment_for_those_who_may_come_back() -> None:
    with ended(b"") as lifeline:
        coordinator = Counted(iter([1, 0, 1, 0]))
        stay(coordinator, lifeline, lonely=0.3)
        assert coordinator.asked[:4] == [1, 0, 1, 0] and len(coordinator.asked) > 5


def test_when_its_starter_was_killed_before_all_had_come_nobody_waits_for_ever() -> None:
    with ended(b"") as lifeline:
        coordinator = Counted(iter([1] * 1000), missing=(0,))
        stay(coordinator, lifeline, lonely=0.2)
        assert len(coordinator.asked) < 100
