"""Checkpoints of a run under way: when all agents save, what they save, and how they go on from it.

Theory of operation. All must save the state of one step. The first agent's clock says when: its wish rides along with
the gradients, so all see it in the same round, and all save when the next batch is drawn, after the optimizer's and
the scheduler's step. Each copies its part and goes on; a thread writes it (:mod:`stretto.checkpoint`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from stretto import checkpoint
from stretto.checkpoint import Checkpoints, Keep, Name, Writer, cut, flatten, rng
from stretto.errors import DataError

EVERY: Final = 30.0
"""Seconds between two checkpoints, unless told otherwise."""
_NOTHING: Final = "-"


class Saver:
    """Where an agent saves, and when it did so last.

    Args:
        place: a folder, or a URL that fsspec knows.
        every: seconds between two checkpoints.
        say: told, in words, what could not be written or read.
    """

    def __init__(self, place: str, every: float, keep: Keep, say: Callable[[str], None]) -> None:
        self._place, self._every, self._keep, self._say = place, every, keep, say
        self._writer: Writer | None = None
        self._run = ""
        self._last = time.monotonic()
        self._saved = -1
        self.wanted = False

    def due(self) -> bool:
        """Is it time again?"""
        return time.monotonic() - self._last >= self._every

    def choose(self, label: int) -> str:
        """For all agents: the name of this run, and the checkpoint to go on from, as one text."""
        found = Checkpoints(self._place, say=self._say).latest()
        run = checkpoint.name_of_run(time.time(), label)
        return f"{run} {found.name if found is not None else _NOTHING}"

    def begin(self, choice: str, part: int) -> Name | None:
        """Save under the run that was chosen; the checkpoint to go on from, if there is one.

        Raises:
            DataError: agent ``part`` cannot write there.
        """
        run, name = choice.split(" ", 1)
        self.join(run)
        Checkpoints(self._place, run=run).try_out(part)
        return None if name == _NOTHING else Name.read(*name.split("/", 1))

    def join(self, run: str) -> None:
        """Save under the name that the others have."""
        self._run = run
        self._writer = Writer(Checkpoints(self._place, run=run, keep=self._keep, say=self._say))

    @property
    def run(self) -> str:
        return self._run

    def load(self, name: Name, part: int, parts: int, wanted: Any) -> tuple[Any, list[Any]]:
        """The state that all had, and what was an agent's own: ours, or, among another number, those that fall to us.

        Args:
            part, parts: which agent we are, of how many.
            wanted: a tree like the one that was saved; its models must be the same.

        Raises:
            DataError: it is damaged, or another model's; says which tensor.
        """
        places = Checkpoints(self._place, say=self._say)
        found = places.open(name)
        checkpoint.check(found.facts, flatten(wanted).facts, under="models")
        shared = checkpoint.restore(*places.shared(found))
        owns = [checkpoint.restore(*places.own(found, i)) for i in range(part, name.parts, parts)]
        self._saved = name.step
        for own in owns:
            if not isinstance(own, dict) or not {"random", "codecs", "local"} <= own.keys():
                raise DataError("a part of the checkpoint has nothing of its agent's own; was it written by Stretto?")
        return shared, owns

    def save(self, step: int, part: int, parts: int, tree: Any, own: dict[str, Any]) -> None:
        """Copy our part of ``tree``, and what is our ``own``, and write it in the background."""
        self.wanted, self._last = False, time.monotonic()
        if self._writer is not None and step > self._saved:
            ours = flatten({"random": rng.capture(), **own})
            if self._writer.submit(cut(step, part, parts, shared=flatten(tree), own=ours)):
                self._saved = step

    def skip(self, step: int, why: str) -> None:
        """Save nothing this time."""
        self.wanted, self._last = False, time.monotonic()
        self._say(f"no checkpoint of step {step} is saved: {why}")

    def last(self) -> str:
        """The newest checkpoint that is whole, in words, once what we write is written."""
        self.close()
        found = Checkpoints(self._place, say=lambda _: None).latest(verify=False)
        if found is None:
            return f"there is no checkpoint at {self._place}"
        return f"the last good checkpoint is of step {found.step}: {self._place}/{found.name}"

    def close(self) -> None:
        """Wait for what is being written."""
        if self._writer is not None:
            self._writer.close()
