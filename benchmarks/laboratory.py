"""All-reduce between hosts of a laboratory, against the bound that one plain stream sets there. Needs root.

    python benchmarks/laboratory.py [--only NAME] [--json PATH]

On every host runs a real agent's courier, and connections go through TLS, as they do between machines. Time is from the
last agent's beginning to the last one's end (one machine, one clock).

The bound of an all-reduce of B bytes over n agents at a rate R is 2(n-1)/n · B/R. A small one needs a number of
one-way delays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stretto.lab import Laboratory

HERE = Path(__file__).resolve()
AGENT, STREAM = HERE.with_name("laboratory_agent.py"), HERE.with_name("laboratory_stream.py")
AGENTS = 4
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
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


def laboratory(case: Case, congestion: str) -> Laboratory:
    return Laboratory(AGENTS, rate=f"{case.rate / 1e6:g}mbit", delay=f"{case.delay * 1e3:g}ms", congestion=congestion)


def python(lab: Laboratory, host: int, script: Path, *arguments: str) -> subprocess.Popen[str]:
    """A script of ours on a host; its output is read here."""
    return lab.start(host, [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True)


def measure(case: Case, congestion: str) -> Iterator[dict[str, Any]]:
    """One row a topology."""
    with laboratory(case, congestion) as lab:
        stream = plain_streams(lab, case, [(1, 0)])
        crowd = plain_streams(lab, case, [(host, (host + 1) % AGENTS) for host in range(AGENTS)])
        for topology in case.topologies:
            found = all_reduce(lab, case, topology)
            yield {
                "case": case.name,
                "topology": topology,
                "plain_stream": stream,
                "plain_ring": crowd,
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
    return {
        "median": median,
        "delay": case.delay,
        "delays": delays,
        "needed": needed,
        "reached": delays <= SLACK * needed,
    }


def plain_streams(lab: Laboratory, case: Case, pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Plain TCP from a host to another, for all ``pairs`` at once: the slowest one's rate (bytes/s) in its second half,
    and how long a message of 4 KB is on its way (s)."""
    total, ping = str(int(case.rate / 8 * STREAM_SECONDS)), str(4 << 10)
    with contextlib.ExitStack() as stack:
        ends = [
            stack.enter_context(python(lab, host, STREAM, what, lab.address(to), total, ping))
            for what, side in (("receive", 1), ("send", 0))
            for pair in pairs
            for host, to in ((pair[side], pair[1]),)
        ]
        found = [json.loads(end.communicate(timeout=60)[0]) for end in ends]
    received, sent = found[: len(pairs)], found[len(pairs) :]
    return {
        "rate": min(f["rate"] for f in received),
        "congestion_control": received[0]["congestion_control"],
        "one_way": max(f["one_way"] for f in sent),
    }


def all_reduce(lab: Laboratory, case: Case, topology: str) -> dict[str, Any]:
    """An agent on each host; seconds of every round."""
    found = on_all(lab, case, AGENT, topology=topology)
    return {
        "seconds": seconds_of(found),
        "courier_cpu_seconds": [f["cpu"] for f in found],
        "cores_busy": found[0]["busy"],
    }


def on_all(lab: Laboratory, case: Case, script: Path, **more: object) -> list[dict[str, Any]]:
    """What the agents found that ``script`` makes, one on each host: it is told its rank and the case."""
    ask = json.dumps(
        {
            "coordinator": f"{lab.address(0)}:{COORDINATOR_PORT}",
            "size": AGENTS,
            "ahead": 0.1 + 4 * case.delay,
            "nbytes": case.nbytes,
            "rounds": case.rounds,
            **more,
        }
    )
    agents = [python(lab, host, script, str(host), ask) for host in range(AGENTS)]
    try:
        told = [agent.communicate(timeout=180)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    if not all(told):
        sys.exit("an agent ended without a result; see above what it said")
    return [json.loads(line) for line in told]


def seconds_of(found: Sequence[dict[str, Any]]) -> list[float]:
    """Of each round: from the last agent's beginning to the last one's end."""
    begins, ends = (list(zip(*(f[key] for f in found), strict=True)) for key in ("begins", "ends"))
    return [max(e) - max(b) for b, e in zip(begins, ends, strict=True)]


def line(row: dict[str, Any]) -> str:
    stream = row["plain_stream"]
    if "share" in row:
        found = (
            f"{row['share']:.3f} of the bound, {row['bound']:.3f} s at {stream['rate'] * 8 / 1e6:.1f} Mbit/s of one "
            f"{stream['congestion_control']} stream ({row['plain_ring']['rate'] * 8 / 1e6:.1f} when all hosts send); "
            f"cores {100 * row['cores_busy']:.0f} % busy; goal {GOAL:g}"
        )
    else:
        found = (
            f"{row['delays']:.2f} one-way delays, {row['needed']} needed; a plain message takes "
            f"{stream['one_way'] / row['delay']:.2f}; goal {SLACK * row['needed']:.2f}"
        )
    reached = "reached" if row["reached"] else "not reached"
    return f"{row['case']}, {row['topology']}: {row['median']:.4f} s, {found}: {reached}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--congestion", default=CONGESTION.read_text().strip(), help="pinned on every host [default: %(default)s]"
    )
    parser.add_argument("--json", metavar="PATH")
    given = parser.parse_args()
    rows = []
    for case in CASES:
        if given.only in case.name:
            for row in measure(case, given.congestion):
                rows.append(row)
                print(line(row), flush=True)
    if given.json:
        Path(given.json).write_text(
            json.dumps({"cases": [asdict(c) for c in CASES], "rows": rows}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
