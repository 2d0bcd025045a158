"""Checkpoints in the background: training goes on while a copy of its state is written."""

from __future__ import annotations

import threading
from collections.abc import Callable

from stretto.checkpoint.checkpoints import Checkpoints
from stretto.checkpoint.part import Part
from stretto.errors import DataError


class Writer:
    """Writes one part at a time in a thread; what fails is said and counted, and training goes on.

    Args:
        checkpoints: where to; its ``say`` is told what was skipped or could not be written.
        on_written: told the step and bytes of each part that was written; called in the thread.

    Attributes:
        written, skipped, failed: parts so far.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        on_written: Callable[[int, int], None] = lambda step, nbytes: None,
    ) -> None:
        self.written = self.skipped = self.failed = 0
        self._checkpoints, self._on_written = checkpoints, on_written
        self._thread: threading.Thread | None = None
        self._step = -1

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def submit(self, part: Part) -> bool:
        """Copy what ``part`` holds, and write it in the background; False if the last one is still under way."""
        if self.busy:
            self.skipped += 1
            self._checkpoints.say(
                f"the checkpoint of step {part.step} is skipped: that of step {self._step} is still being written; "
                "make them rarer, or name a faster place"
            )
            return False
        try:
            copied = part.copy()
        except (MemoryError, RuntimeError) as e:  # torch's allocator raises RuntimeError
            self._count(part, e)
            return False
        self._step = part.step
        self._thread = threading.Thread(target=self._write, args=(copied,), name="stretto checkpoint", daemon=True)
        self._thread.start()
        return True

    def close(self) -> None:
        """Wait until what was submitted is written, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, part: Part) -> None:
        try:
            nbytes = self._checkpoints.write(part)
        except Exception as e:  # whatever a place comes up with, training outlives it
            self._count(part, e)
            return
        self.written += 1
        self._on_written(part.step, nbytes)
        if part.part == 0:
            self._prune()

    def _prune(self) -> None:
        try:
            self._checkpoints.prune()
        except DataError as e:
            self._checkpoints.say(f"old checkpoints were not removed: {e}")

    def _count(self, part: Part, error: Exception) -> None:
        self.failed += 1
        self._checkpoints.say(
            f"part {part.part} of {part.parts} of the checkpoint of step {part.step} was not written, so there is none "
            f"of this step: {error}. Training goes on, and tries again at the next one ({self.failed} failed so far)"
        )
