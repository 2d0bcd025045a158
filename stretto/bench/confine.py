"""A share of a core for some processes, by a control group of the kernel's. Needs root."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stretto.errors import UsageError

PERIOD: Final = 20_000
"""Microseconds in which a share is given: short, so that who is confined is slow all the time and not now and then."""
_MOUNT: Final = Path("/sys/fs/cgroup")
_PATIENCE: Final = 10.0
"""Seconds in which processes that were ended are gone."""


@contextlib.contextmanager
def confined(share: float) -> Iterator[Path]:
    """A group whose members, and the processes they start, together get ``share`` of a core: see :func:`enter`.

    Raises:
        UsageError: this machine has none for us.
    """
    parent = _MOUNT / "cpu" if (_MOUNT / "cpu").is_dir() else _MOUNT
    group = parent / f"stretto-{os.getpid()}"
    try:
        group.mkdir()
        _limit(group, share)
    except OSError as e:
        with contextlib.suppress(OSError):
            group.rmdir()
        raise UsageError(
            f"a share of a core takes root and a control group, and {group} could not be made ({e.strerror}); "
            "run as root, or leave stragglers out with --only"
        ) from e
    try:
        yield group
    finally:
        _remove(group)


def enter(group: Path) -> None:
    """From now on this process, and those that it starts, have what the group has."""
    (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


def _limit(group: Path, share: float) -> None:
    quota = int(PERIOD * share)
    if (group / "cpu.cfs_quota_us").exists():
        (group / "cpu.cfs_period_us").write_text(str(PERIOD), encoding="ascii")
        (group / "cpu.cfs_quota_us").write_text(str(quota), encoding="ascii")
    else:
        (group / "cpu.max").write_text(f"{quota} {PERIOD}", encoding="ascii")


def _remove(group: Path) -> None:
    """When the last of its processes has gone."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.02)
