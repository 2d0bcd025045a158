"""Push and pull between four hosts of a laboratory at 1 gbit, who all hold a part of the model. Needs root.

    python benchmarks/server_laboratory.py [--replicas N ...] [--folder DIR]

Real couriers, TLS between them as between machines. Of S bytes of model and n hosts each pushes (n-1)/n · S to the
others, is answered as much, and sends on what it holds to those who hold it too. So the wire is what counts: the bytes
of the host that sends or receives most, over the time from the last agent's beginning to the last one's end, as a part
of the rate that one plain stream gets in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laboratory import AGENTS, CONGESTION, Case, laboratory, on_all, plain_streams, seconds_of

HERE = Path(__file__).resolve()
AGENT = HERE.with_name("server_laboratory_agent.py")
RESULTS = HERE.parents[1] / "docs" / "results"
GOAL = 0.9
CASE = Case("1 gbit, 0.2 ms, 16 MB", 1e9, 0.2e-3, 16 << 20, 10, ())
STRATEGIES = ("bsp", "asp")


def measure(replicas: list[int], congestion: str) -> Iterator[dict[str, Any]]:
    """One row a strategy and number of replicas."""
    with laboratory(CASE, congestion) as lab:
        stream = plain_streams(lab, CASE, [(1, 0)])
        crowd = plain_streams(lab, CASE, [(host, (host + 1) % AGENTS) for host in range(AGENTS)])
        for strategy in STRATEGIES:
            for copies in replicas:
                found = on_all(lab, CASE, AGENT, strategy=f"{strategy}(replicas={copies})")
                busiest = max(max(f["sent"], f["received"]) for f in found)
                seconds = statistics.median(seconds_of(found))
                yield {
                    "strategy": found[0]["strategy"],
                    "seconds": seconds_of(found),
                    "median": seconds,
                    "bytes": [[f["sent"], f["received"]] for f in found],
                    "plain_stream": stream,
                    "plain_ring": crowd,
                    "share": busiest / seconds / stream["rate"],
                    "of_crowd": busiest / seconds / crowd["rate"],
                    "cores_busy": found[0]["busy"],
                }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    sent, received = (max(column) for column in zip(*row["bytes"], strict=True))
    return (
        f"`{row['strategy']}`",
        f"{row['median']:.3f}",
        f"{sent / 1e6:.1f} / {received / 1e6:.1f}",
        f"{row['share']:.2f}",
        f"{row['of_crowd']:.2f}",
        f"{100 * row['cores_busy']:.0f} %",
        f"{GOAL:g}",
        "yes" if row["share"] >= GOAL else "no",
    )


HEADERS = (
    "strategy",
    "seconds",
    "MB sent / received",
    "of the wire",
    "of all at once",
    "cores busy",
    "goal",
    "reached",
)


def page(rows: list[dict[str, Any]], command: str) -> str:
    stream, crowd = rows[0]["plain_stream"], rows[0]["plain_ring"]
    lines = [
        "# The parameter server between four hosts",
        "",
        f"`{command}` (root). {CASE.name} of model, no server but the agents (`servers=0`); real couriers on each",
        f"host, TLS between them; congestion control {stream['congestion_control']}. Seconds are of everybody's call.",
        f"The wire is what one plain stream gets in the same run: {stream['rate'] * 8 / 1e6:.0f} Mbit/s, and "
        f"{crowd['rate'] * 8 / 1e6:.0f} when every host",
        "sends to the next at once. Bytes are those of the host with the most.",
        "",
        "| " + " | ".join(HEADERS) + " |",
        "|" + "---|" * len(HEADERS),
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2], help="how many hold each part of the model")
    parser.add_argument(
        "--congestion", default=CONGESTION.read_text().strip(), help="pinned on every host [default: %(default)s]"
    )
    parser.add_argument("--folder", type=Path, help="write server-laboratory.md and .json here")
    given = parser.parse_args()
    rows = []
    for row in measure(given.replicas, given.congestion):
        rows.append(row)
        print(" | ".join(cells(row)), flush=True)
    if given.folder is not None:
        command = f"python benchmarks/server_laboratory.py --folder {given.folder}"
        (given.folder / "server-laboratory.md").write_text(page(rows, command), encoding="utf-8")
        (given.folder / "server-laboratory.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
