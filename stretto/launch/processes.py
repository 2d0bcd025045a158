"""Agents as process groups: the trainer, its courier and all they start go together, and none outlives the launcher."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

_PR_SET_CHILD_SUBREAPER: Final = 36
_WARDEN: Final = Path(__file__).with_name("warden.py")
_FOLDER: Final = "stretto-"
_BEGIN: Final = 'echo "+$$" >&0 && exec "$@" </dev/null'
"""Runs in a shell whose standard input is the pipe to the warden: no agent begins before the warden will know of it."""
_BEGIN_UNGUARDED: Final = 'exec "$@" </dev/null'


class Warden:
    """The pipe to a process that kills every group still running when this launcher ends, by ``kill -9`` too.

    Meanwhile orphans of the agents become our children, so that we see when the last one is gone, also in a container
    whose first process buries nobody. ``folder`` is private to the launch, and goes with it.
    """

    def __init__(self) -> None:
        _adopt_orphans(True)
        self.folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
        # No site, no environment: it must start at once, and whatever the user's PYTHONPATH holds.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WARDEN), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()

    def start(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        piped: bool,
        guarded: bool = True,
        descriptors: Sequence[int] = (),
    ) -> Group:
        """Start ``command`` as the leader of a new group, which inherits ``descriptors``.

        ``piped`` gives us its output; one that is not ``guarded`` outlives a launcher that is killed.
        """
        output = subprocess.PIPE if piped else None
        leader = subprocess.Popen(
            ["/bin/sh", "-c", _BEGIN if guarded else _BEGIN_UNGUARDED, "sh", *command],
            stdin=self._pipe,
            stdout=output,
            stderr=output,
            env=dict(environ),
            process_group=0,
            pass_fds=descriptors,
        )
        return Group(leader)

    def forget(self, group: Group) -> None:
        """The group is gone; its number may soon be another's."""
        os.write(self._pipe, b"-%d\n" % group.number)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        _adopt_orphans(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Group:
    """One agent's processes. ``watch`` becomes readable when its leader, the trainer, ends."""

    def __init__(self, leader: subprocess.Popen[bytes]) -> None:
        self.leader = leader
        self.number = leader.pid
        self.watch = os.pidfd_open(leader.pid)

    def reap(self) -> int:
        """The exit code of the leader, which has ended; negative for a signal."""
        os.close(self.watch)
        return self.leader.wait()

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.number, number)

    def bury(self) -> None:
        """Reap what was killed, as far as it was left to us. To be asked after :meth:`reap`."""
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-self.number, 0)

    def gone(self) -> bool:
        """No process of it is left. To be asked after :meth:`reap`."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.number, os.WNOHANG)[0]:
                pass
        try:
            os.killpg(self.number, 0)
        except ProcessLookupError:
            return True
        return False


def _adopt_orphans(yes: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)
