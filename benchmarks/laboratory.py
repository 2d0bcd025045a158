"""All-reduce between hosts of a network laboratory, against the bound that one plain stream sets there.

    python benchmarks/laboratory.py [LABORATORY] [--only NAME] [--json PATH]

LABORATORY (or $STRETTO_NETLAB) is a command that makes a network of hosts on one machine, as root:

    LABORATORY up --hosts N --rate 100mbit --delay 5ms      hosts 0..N-1, at 10.77.0.1 and on; the delay is one way
    LABORATORY exec HOST -- COMMAND
    LABORATORY down

Without one this says so and ends well. On every host runs a real agent's courier, and connections go through TLS, as
they do between machines. Time is from the last agent's beginning to the last one's end (one machine, one clock).

The bound of an all-reduce of B bytes over n agents at a rate R is 2(n-1)/n · B/R. A small one needs a number of
one-way delays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
AGENT = HERE.with_name("laboratory_agent.py")
AGENTS = 4
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
STREAM_PORT = 29470
COORDINATOR_PORT = 29471
GOAL, SLACK = 0.92, 1.15
STREAM_SECONDS = 2.0
"""How long the plain stream lasts at the nominal rate."""


@dataclass(frozen=True)
class Case:
    """A network and what to exchange there. ``delay`` in seconds one way, ``rate`` in bits/s."""

    name: str
    rate: float
    delay: float
    nbytes: int
    rounds: int
    topologies: tuple[str, ...]


CASES = (
    Case("1 gbit, 0.2 ms, 16 MB", 1e9, 0.2e-3, 16 << 20, 10, ("ring", "butterfly", "auto")),
    Case("100 mbit, 5 ms, 16 MB", 100e6, 5e-3, 16 << 20, 5, ("ring", "butterfly", "auto")),
    Case("20 mbit, 40 ms, 4 KB", 20e6, 40e-3, 4 << 10, 20, ("butterfly", "tree", "star", "auto")),
)
ONE_WAY_DELAYS = {"butterfly": 2, "tree": 4, "star": 2, "auto": 2}
"""Of the 4 KB case, 4 agents: log2(n) exchanges whole; up and down a binary tree of height 2; up and down."""


class Laboratory:
    """The command, and the congestion control that every host of it is told to use."""

    def __init__(self, command: str, congestion: str) -> None:
        self.command, self.congestion = command, congestion

    @contextlib.contextmanager
    def up(self, case: Case) -> Iterator[None]:
        delay, rate = f"{case.delay * 1e3:g}ms", f"{case.rate / 1e6:g}mbit"
        subprocess.run(
            [self.command, "up", "--hosts", str(AGENTS), "--rate", rate, "--delay", delay],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        try:
            for host in range(AGENTS):
                self.pin(host)
            yield
        finally:
            subprocess.run([self.command, "down"], check=True, stdout=subprocess.DEVNULL)

    def pin(self, host: int) -> None:
        asked = ["sysctl", "-qw", f"net.ipv4.tcp_congestion_control={self.congestion}"]
        if self.start(host, asked, stderr=subprocess.DEVNULL).wait():
            sys.exit(
                f"host {host} may not use {self.congestion}; name one of: {ALLOWED.read_text().strip()}, "
                f"or allow it in {ALLOWED}"
            )

    def start(self, host: int, command: list[str], **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([self.command, "exec", str(host), "--", *command], text=True, **more)

    def python(self, host: int, script: Path, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        return self.start(host, [sys.executable, str(script), *arguments], **more)


def address(host: int) -> str:
    return f"10.77.0.{host + 1}"


def measure(laboratory: Laboratory, case: Case) -> Iterator[dict[str, Any]]:
    """One row a topology."""
    with laboratory.up(case):
        stream = plain_stream(laboratory, case)
        for topology in case.topologies:
            found = all_reduce(laboratory, case, topology)
            yield {
                "case": case.name,
                "topology": topology,
                "plain_stream": stream,
                **found,
                **judged(case, topology, stream["rate"], found["seconds"]),
            }


def judged(case: Case, topology: str, rate: float, seconds: list[float]) -> dict[str, Any]:
    """Against the bound where bytes count, against delays where they do not."""
    median = statistics.median(seconds)
    if case.nbytes > 1 << 20:
        bound = 2 * (AGENTS - 1) / AGENTS * case.nbytes / rate
        return {"median": median, "bound": bound, "share": bound / median, "reached": bound / median >= GOAL}
    delays = median / case.delay
    needed = ONE_WAY_DELAYS[topology]
    return {"median": median, "delays": delays, "needed": needed, "reached": delays <= SLACK * needed}


def plain_stream(laboratory: Laboratory, case: Case) -> dict[str, Any]:
    """One TCP stream from host 1 to host 0; ``rate`` in bytes/s, of its second half."""
    total = int(case.rate / 8 * STREAM_SECONDS)
    with (
        laboratory.python(0, HERE, "--receive", str(total), stdout=subprocess.PIPE) as receiver,
        laboratory.python(1, HERE, "--send", str(total)) as sender,
    ):
        out, _ = receiver.communicate(timeout=60)
        sender.wait(timeout=60)
    found: dict[str, Any] = json.loads(out)
    return found


def receive(total: int) -> None:
    with socket.create_server((address(0), STREAM_PORT)) as server:
        stream, _ = server.accept()
    room = bytearray(1 << 18)
    got, half_at = 0, 0.0
    while got < total:
        got += stream.recv_into(room)
        if not half_at and got >= total / 2:
            half, half_at = got, time.monotonic()
    rate = (got - half) / (time.monotonic() - half_at)
    control = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
    print(json.dumps({"rate": rate, "congestion_control": control}))


def send(total: int) -> None:
    data = memoryview(bytearray(1 << 18))
    with connected(address(0), STREAM_PORT) as stream:
        for at in range(0, total, len(data)):
            stream.sendall(data[: total - at])
        stream.shutdown(socket.SHUT_WR)
        stream.recv(1)


def connected(host: str, port: int) -> socket.socket:
    until = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection((host, port), 5)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def all_reduce(laboratory: Laboratory, case: Case, topology: str) -> dict[str, Any]:
    """An agent on each host; seconds of every round."""
    ask = json.dumps(
        {
            "coordinator": f"{address(0)}:{COORDINATOR_PORT}",
            "size": AGENTS,
            "nbytes": case.nbytes,
            "rounds": case.rounds,
            "topology": topology,
        }
    )
    agents = [laboratory.python(host, AGENT, str(host), ask, stdout=subprocess.PIPE) for host in range(AGENTS)]
    try:
        found = [json.loads(agent.communicate(timeout=180)[0].splitlines()[-1]) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    begins, ends = (list(zip(*(f[key] for f in found), strict=True)) for key in ("begins", "ends"))
    seconds = [max(e) - max(b) for b, e in zip(begins, ends, strict=True)]
    return {"seconds": seconds, "courier_cpu_seconds": [f["cpu"] for f in found]}


def line(row: dict[str, Any]) -> str:
    stream = row["plain_stream"]
    if "share" in row:
        found = (
            f"{row['share']:.3f} of the bound, {row['bound']:.3f} s at {stream['rate'] * 8 / 1e6:.1f} Mbit/s of one "
            f"{stream['congestion_control']} stream; goal {GOAL:g}"
        )
    else:
        found = f"{row['delays']:.2f} one-way delays, {row['needed']} needed; goal {SLACK * row['needed']:.2f}"
    reached = "reached" if row["reached"] else "not reached"
    return f"{row['case']}, {row['topology']}: {row['median']:.4f} s, {found}: {reached}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("laboratory", nargs="?", default=os.environ.get("STRETTO_NETLAB"))
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--congestion", default=CONGESTION.read_text().strip(), help="pinned on every host [default: %(default)s]"
    )
    parser.add_argument("--json", metavar="PATH")
    for part in ("--receive", "--send"):
        parser.add_argument(part, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.receive:
        receive(given.receive)
    elif given.send:
        send(given.send)
    elif not given.laboratory:
        print("no network laboratory: name its command, or set STRETTO_NETLAB; nothing was measured")
    else:
        rows = []
        for case in CASES:
            if given.only in case.name:
                for row in measure(Laboratory(given.laboratory, given.congestion), case):
                    rows.append(row)
                    print(line(row), flush=True)
        if given.json:
            Path(given.json).write_text(
                json.dumps({"cases": [asdict(c) for c in CASES], "rows": rows}, indent=2) + "\n", encoding="utf-8"
            )


if __name__ == "__main__":
    main()
