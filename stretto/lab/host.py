"""The launcher on one host of a laboratory: ``python -m stretto.lab.host CLUSTER HOST COMMAND...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from stretto.errors import StrettoError
from stretto.launch.cluster import read_cluster
from stretto.launch.supervise import run_host


def main(cluster_file: str, name: str, *command: str) -> int:
    try:
        cluster = read_cluster(Path(cluster_file))
        return run_host(command, cluster, cluster.machine(name), link="tcp")
    except StrettoError as e:
        print(f"stretto: {e}", file=sys.stderr)
        return e.exit_code


def command(cluster_file: Path, name: str, agent: Sequence[str]) -> list[str]:
    """What to run on host ``name`` so that its agents run ``agent``."""
    return [sys.executable, "-m", __name__, str(cluster_file), name, *agent]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
