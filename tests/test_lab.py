"""The laboratory: hosts of its own, cables that can be pulled, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stretto.cli.lab import lab as command
from stretto.errors import UsageError
from stretto.lab import Laboratory, Switch, switch
from stretto.lab.quantities import Line, line, seconds

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/net/tun"), reason="a laboratory needs root and /dev/net/tun"
)

ECHO = """
import socket
at = socket.create_server(("", 5000))
print("listening", flush=True)
while True:
    end, _ = at.accept()
    while data := end.recv(65536):
        end.sendall(data)
"""
SAY = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000), timeout=float(sys.argv[2])) as end:
    end.sendall(b"hello")
    print(end.recv(5).decode())
"""
SHOUT = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as mine:
    for _ in range(50):
        mine.sendto(bytes(100), (sys.argv[1], 9))
"""


def test_quantities_are_read_as_people_write_them() -> None:
    assert line(rate="100mbit", delay="5ms", loss="0.5%", queue="1MiB") == Line(
        rate=12.5e6, delay=0.005, loss=0.005, queue=1048576.0
    )
    assert line() == Line()
    assert seconds("1min", "pause") == 60


@pytest.mark.parametrize(
    "bad", [{"rate": "100"}, {"rate": "0mbit"}, {"delay": "5"}, {"loss": "100%"}, {"queue": "1MB"}, {"delay": "-1ms"}]
)
def test_a_quantity_that_cannot_be_is_refused_in_words(bad: dict[str, str]) -> None:
    (name, text), *_ = bad.items()
    with pytest.raises(UsageError, match=f"{name} .?{text}"):
        line(**bad)


def test_without_root_or_a_compiler_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UsageError, match="no C compiler; install one"):
        switch.program(cache=tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="needs root"):
        Laboratory(hosts=2)


def test_a_command_to_no_laboratory_says_how_to_begin() -> None:
    with pytest.raises(UsageError, match="no laboratory named 'nowhere' is up; begin with: stretto lab up"):
        Switch("nowhere")


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    with Laboratory(hosts=3, delay="1ms") as lab:
        yield lab


def echoing(lab: Laboratory, host: int) -> None:
    server = lab.start(host, [sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
    with server.stdout:
        assert server.stdout.readline() == "listening\n"


def heard(lab: Laboratory, host: int, other: int, patience: float = 10.0) -> bool:
    """Whether ``other`` answers ``host``."""
    words = [sys.executable, "-c", SAY, lab.address(other), str(patience)]
    client = lab.start(host, words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return client.communicate()[0] == "hello\n"


@needs_root
@pytest.mark.network
def test_hosts_hear_each_other_until_a_cable_is_cut(lab: Laboratory) -> None:
    echoing(lab, 0)
    assert heard(lab, 1, 0)
    lab.cut(0)
    assert not heard(lab, 1, 0, patience=0.3)
    lab.heal(0)
    assert heard(lab, 1, 0)
    lab.cut(0, 1)
    assert not heard(lab, 1, 0, patience=0.3)
    assert heard(lab, 2, 0)
    lab.heal(0, 1)


@needs_root
@pytest.mark.network
def test_what_passes_is_counted_and_what_is_lost_too(lab: Laboratory) -> None:
    before = lab.stats()
    lab.set(2, loss="0.999")
    words = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); [s.sendto(bytes(100), (%r, 9)) for _ in range(50)]"
    )
    for host in (1, 2):
        lab.start(host, [sys.executable, "-c", words % lab.address(0)]).wait()
    await_true(lambda: lab.stats()[2].sent - before[2].sent >= 50 * 128)
    lab.set(2, loss="0")
    after = lab.stats()
    assert after[0].received - before[0].received >= 50 * 128
    assert after[2].lost - before[2].lost >= 40
    assert after[1].lost == before[1].lost


@needs_root
@pytest.mark.network
def test_a_host_that_is_not_there_is_refused(lab: Laboratory) -> None:
    for act in (lab.address, lab.cut, lambda host: lab.start(host, ["true"])):
        with pytest.raises(UsageError, match=r"no host 3 in the laboratory .*; it has 0 to 2"):
            act(3)


@needs_root
@pytest.mark.network
def test_a_laboratory_that_cannot_be_had_says_why_and_leaves_nothing() -> None:
    with pytest.raises(UsageError, match="65 hosts: 2 to 64 can be had"):
        Laboratory(hosts=65)
    with pytest.raises(UsageError, match="may not use the congestion control carrier-pigeon; name one of: "):
        Laboratory(hosts=2, congestion="carrier-pigeon")


@needs_root
@pytest.mark.network
def test_at_its_end_nothing_runs_on_its_hosts() -> None:
    with Laboratory(hosts=2) as lab:
        lab.start(1, ["sh", "-c", "setsid sleep 1000 & setsid sleep 1000 & wait"], start_new_session=True)
        await_true(lambda: len(lab.processes(1)) == 3)
        found = lab.processes(1)
        assert lab.processes(0) == []
    await_true(lambda: not any(map(runs, found)))


@needs_root
@pytest.mark.network
def test_kill_9_of_its_owner_leaves_nothing() -> None:
    script = """
    import subprocess
    from stretto.lab import Laboratory
    lab = Laboratory(hosts=2)
    lab.start(0, ["setsid", "sleep", "1000"])
    while len(found := lab.processes(0)) != 1: pass
    print(lab._process.pid, *found, flush=True)
    lab._process.wait()
    """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    with owner.stdout:
        found = [int(word) for word in owner.stdout.readline().split()]
    assert len(found) == 2 and all(map(runs, found))
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    await_true(lambda: not any(map(runs, found)))


def stretto(*words: str) -> Result:
    return CliRunner().invoke(command, list(words), catch_exceptions=True)


@needs_root
@pytest.mark.network
def test_a_laboratory_of_the_command_line_stays_until_it_is_taken_down() -> None:
    name = f"test-{os.getpid()}"
    assert stretto("up", "--hosts", "2", "--rate", "10mbit", "--name", name).exit_code == 0
    try:
        assert "is up already; end it with: stretto lab down" in str(stretto("up", "--name", name).exception)
        assert stretto("set", "all", "--delay", "2ms", "--name", name).exit_code == 0
        assert stretto("cut", "0", "--name", name).exit_code == 0
        assert stretto("heal", "0", "--name", name).exit_code == 0
        assert '"sent":' in stretto("stats", "--name", name).output
        inside = Switch(name).inside(1, ["cat", "/proc/net/dev"])
        assert "tun0" in subprocess.run(inside, capture_output=True, text=True, check=True).stdout
    finally:
        assert stretto("down", "--name", name).exit_code == 0
    with pytest.raises(UsageError, match="no laboratory named"):
        Switch(name)


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def await_true(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends, "it did not come true within 30 s"
        time.sleep(0.01)
