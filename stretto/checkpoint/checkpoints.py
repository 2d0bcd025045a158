"""All checkpoints in one place: agents write their parts and do not talk; what is read is whole, or not read at all.

    PLACE / RUN / step-000000001200-of-4 / part-0.safetensors    tensors
                                           part-0.json           manifest, written last
                                           part-1.safetensors
                                           …

Theory of operation. A checkpoint is complete when all its manifests are there, agree with each other, and the files
beside them have the sizes they say; nobody coordinates. What a death or a full disk left half written is not complete,
so it is not chosen; it is removed once a newer one is complete. RUN names one start of the training, so what a
restarted training writes again never mixes with what was there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from stretto.checkpoint import layout
from stretto.checkpoint.name import KEEP, Keep, Name, is_run
from stretto.checkpoint.part import Manifest, Part, manifest, read_manifest
from stretto.checkpoint.place import place as place_at
from stretto.checkpoint.tree import Flat, entries
from stretto.errors import DataError, UsageError


def aloud(text: str) -> None:
    print(f"stretto: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: its name, and what its parts say of themselves."""

    name: Name
    parts: tuple[Manifest, ...] = field(repr=False)

    @property
    def step(self) -> int:
        return self.name.step

    @property
    def facts(self) -> bytes:
        """The facts of the state that all agents had."""
        return bytes(self.parts[0].shared)

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.parts)


class Checkpoints:
    """The checkpoints of one training.

    Args:
        place: a folder, or a URL that fsspec knows (``"s3://bucket/training"``).
        run: the name of this start (see :func:`name_of_run`), the same on all agents; empty to read only.
        keep: what :meth:`prune` leaves.
        say: told, in words, what was passed over, skipped or not written, and why.

    Raises:
        UsageError: no such kind of place, or no such name.
        DataError: the place cannot be reached.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        run: str = "",
        keep: Keep = KEEP,
        say: Callable[[str], None] = aloud,
    ) -> None:
        if run and not is_run(run):
            raise UsageError(f"a run cannot be named {run!r}: letters, digits and . _ - only, 80 at most")
        self.place = place_at(place)
        self.run, self.keep, self.say = run, keep, say

    def try_out(self, part: int) -> None:
        """Raises :class:`DataError` now, not after an hour, if agent ``part`` cannot write here."""
        path = f"{self._run()}/writable-{part}"
        self.place.put(path, [b"stretto\n"])
        self.place.remove(path)

    def write(self, part: Part) -> int:
        """Write one agent's part; it counts once the others have written theirs. Returns its bytes.

        Raises:
            DataError: it could not be written; no other checkpoint has suffered.
        """
        name, digests = Name(self._run(), part.step, part.parts), list[str]()
        nbytes = self.place.put(_data(name, part.part), layout.stream(part.tensors, digests))
        return nbytes + self.place.put(_manifest(name, part.part), [manifest(part, name.run, nbytes, digests)])

    def names(self) -> list[Name]:
        """Everything that looks like a checkpoint, torn or not, the newest first."""
        runs = [run for run, size in self.place.names("").items() if size < 0 and is_run(run)]
        found = [Name.read(run, folder) for run in runs for folder in self.place.names(run)]
        return sorted((n for n in found if n is not None), reverse=True)

    def open(self, name: Name) -> Checkpoint:
        """A complete checkpoint by its name; its tensors are not read yet.

        Raises:
            DataError: it is torn or damaged; says which part, and why.
        """
        sizes = self.place.names(str(name))
        unfinished = _unfinished(name, sizes)
        if unfinished:
            raise DataError(f"it is torn: of its {name.parts} parts, {_list(unfinished)} did not finish")
        parts = tuple(self._part(name, p, sizes) for p in range(name.parts))
        shared = bytes(parts[0].shared)
        for p, said in enumerate(parts):
            if bytes(said.shared) != shared:
                raise DataError(f"its parts 0 and {p} disagree about the state that all agents have")
        dealt = sorted(s.number for said in parts for s in said.tensors if s.state == "shared")
        if dealt != list(range(len(entries(shared)))):
            raise DataError("its parts do not hold every shared tensor once")
        return Checkpoint(name, parts)

    def latest(self, *, verify: bool = True) -> Checkpoint | None:
        """The newest complete checkpoint; with ``verify`` every byte of it has been read and compared.

        None if there is none. Newer ones that are torn or damaged are passed over, and ``say`` is told why.

        Raises:
            DataError: the place cannot be read.
        """
        for name in self.names():
            try:
                found = self.open(name)
                if verify:
                    self.verify(found)
                return found
            except DataError as e:
                self.say(f"the checkpoint of step {name.step} ({self.place}/{name}) is passed over: {e}")
        return None

    def at(self, step: int) -> Checkpoint:
        """The newest complete checkpoint of ``step``.

        Raises:
            DataError: there is none, or it is torn or damaged; says what there is.
        """
        names = self.names()
        why = ""
        for name in (n for n in names if n.step == step):
            try:
                return self.open(name)
            except DataError as e:
                why = why or f" that is whole: {e}"
        steps = sorted({n.step for n in names if n.step != step})
        there = f"others are of steps {_list(steps[-8:])}" if steps else "there is no other"
        raise DataError(f"{self.place} has no checkpoint of step {step}{why}; {there}")

    def verify(self, checkpoint: Checkpoint) -> None:
        """Read every byte; raises :class:`DataError` that names the tensor that is damaged."""
        for part in range(checkpoint.name.parts):
            for _ in self._read(checkpoint, part):
                pass

    def shared(self, checkpoint: Checkpoint) -> Flat:
        """The state that all agents had, from all parts, verified; raises :class:`DataError`."""
        tensors: list[Tensor] = [torch.empty(0)] * len(entries(checkpoint.facts))
        for part in range(checkpoint.name.parts):
            for stored, x in self._read(checkpoint, part, "shared"):
                tensors[stored.number] = x
        return Flat(checkpoint.facts, tensors)

    def own(self, checkpoint: Checkpoint, part: int) -> Flat:
        """What was agent ``part``'s own, verified; raises :class:`DataError`."""
        if not 0 <= part < checkpoint.name.parts:
            raise DataError(
                f"the checkpoint of step {checkpoint.step} has {checkpoint.name.parts} parts, no part {part}"
            )
        found = sorted(((s.number, x) for s, x in self._read(checkpoint, part, "own")), key=lambda pair: pair[0])
        facts = bytes(checkpoint.parts[part].own)
        if [n for n, _ in found] != list(range(len(entries(facts)))):
            raise DataError(f"part {part} of {self.place}/{checkpoint.name} does not hold all that was its agent's own")
        return Flat(facts, [x for _, x in found])

    def prune(self) -> list[Name]:
        """Remove what ``keep`` lets go, and say what it was. Never the last complete one. One agent does it."""
        removed = list(self.keep.doomed(self.names(), self._torn, self._complete))
        for name in removed:
            for file in self.place.names(str(name)):
                if file.endswith(".json"):
                    self.place.remove(f"{name}/{file}")  # first, so that what a crash here leaves is torn, not damaged
            self.place.remove(str(name))
            if name.run != self.run and not self.place.names(name.run):
                self.place.remove(name.run)
        return removed

    def _run(self) -> str:
        if not self.run:
            raise UsageError("these checkpoints were opened to read; to write, name the run")
        return self.run

    def _torn(self, name: Name) -> bool:
        return bool(_unfinished(name, self.place.names(str(name))))

    def _complete(self, name: Name) -> bool:
        try:
            self.open(name)
        except DataError:
            return False
        return True

    def _part(self, name: Name, part: int, sizes: dict[str, int]) -> Manifest:
        with self.place.open(_manifest(name, part)) as file:
            said = read_manifest(file.read())
        if (said.run, said.step, said.parts, said.part) != (name.run, name.step, name.parts, part):
            raise DataError(f"its part {part} says that it is part {said.part} of {said.parts} of step {said.step}")
        size = sizes.get(f"part-{part}.safetensors")
        if layout.size(said.tensors) != said.nbytes:
            raise DataError(f"the manifest of its part {part} does not add up")
        if size != said.nbytes:
            there = "is missing" if size is None else f"has {size} bytes of {said.nbytes}"
            raise DataError(f"part-{part}.safetensors {there}")
        return said

    def _read(
        self, checkpoint: Checkpoint, part: int, state: Literal["shared", "own", ""] = ""
    ) -> Iterator[tuple[layout.Stored, Tensor]]:
        path = _data(checkpoint.name, part)
        try:
            with self.place.open(path) as file:
                yield from layout.read(file, checkpoint.parts[part].tensors, state=state)
        except DataError as e:
            raise DataError(f"{path}: {e}") from e


def _data(name: Name, part: int) -> str:
    return f"{name}/part-{part}.safetensors"


def _manifest(name: Name, part: int) -> str:
    return f"{name}/part-{part}.json"


def _unfinished(name: Name, files: Container[str]) -> list[int]:
    return [p for p in range(name.parts) if f"part-{p}.json" not in files]


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
