"""A process that outlives the launcher by a moment: when that is gone, however it went, it kills what it had started.

It reads ``+PGID`` (a process group began) and ``-PGID`` (it is gone) from standard input. Its end means that nobody
holds the other end any more: the launcher was killed, or has finished and left nothing. Then the folder of the launch,
its only argument, goes too. It runs as a plain file, without the package, and imports next to nothing, so that it is
there before the agents are.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue
    _remove(sys.argv[1])


def _remove(folder: str) -> None:
    """Whatever lies in it; an agent that is being killed may be writing its last file."""
    import shutil  # noqa: PLC0415  not needed at the start

    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
