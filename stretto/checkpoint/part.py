"""One agent's part of a checkpoint: its own state, its share of the state that all have, and the manifest of both.

All agents hold the same weights, so each writes some of the tensors; each also has what is its own (random generators,
residuals). The manifest is written last: where it is, all else is.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal, Self

import msgspec
import torch
from torch import Tensor

from stretto.checkpoint.layout import Stored, ordered
from stretto.checkpoint.tree import Flat, entries
from stretto.errors import DataError, UsageError

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Part:
    """What agent ``part`` of ``parts`` writes of the checkpoint of ``step``; made by :func:`cut`."""

    step: int
    part: int
    parts: int
    shared: bytes
    own: bytes
    tensors: tuple[tuple[Stored, Tensor], ...]

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for s, _ in self.tensors)

    def copy(self) -> Self:
        """The same with tensors of its own, so that training may go on in the others."""
        copied = tuple((s, x.clone()) for s, x in self.tensors)
        return type(self)(self.step, self.part, self.parts, self.shared, self.own, copied)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one part says of itself. ``shared``: the facts of the state that all have; ``own``: of the agent's own."""

    run: str
    step: int
    part: int
    parts: int
    stretto: str
    torch: str
    nbytes: int
    shared: msgspec.Raw
    own: msgspec.Raw
    tensors: tuple[Stored, ...]


class _Envelope(msgspec.Struct):
    format: int
    digest: str = ""
    manifest: msgspec.Raw = msgspec.Raw()


def spread(sizes: Sequence[int], parts: int) -> tuple[tuple[int, ...], ...]:
    """Which of the tensors of ``sizes`` bytes go into which part: the largest first, to whom has least.

    Pure, so that agents agree without a word. No part exceeds the mean by more than one tensor.
    """
    loads = [(0, p) for p in range(parts)]
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, p = loads[0]
        dealt[p].append(i)
        heapq.heapreplace(loads, (load + sizes[i], p))
    return tuple(tuple(sorted(d)) for d in dealt)


def cut(step: int, part: int, parts: int, *, shared: Flat, own: Flat) -> Part:
    """Part ``part`` of ``parts``: its tensors of ``shared`` (the same on all agents), all of ``own``; none is copied.

    Raises:
        UsageError: there is no such part or step.
    """
    if step < 0 or not 0 <= part < parts:
        raise UsageError(f"no checkpoint of step {step} has a part {part} of {parts}")
    mine = spread([x.nbytes for x in shared.tensors], parts)[part]
    stored = _stored("shared", shared, mine) + _stored("own", own, range(len(own.tensors)))
    return Part(step, part, parts, shared.facts, own.facts, tuple(ordered(stored)))


def manifest(part: Part, run: str, nbytes: int, digests: Sequence[str]) -> bytes:
    """The text that says what was written in ``nbytes`` bytes; ``digests`` in the order of ``part.tensors``."""
    said = msgspec.json.encode(
        Manifest(
            run=run,
            step=part.step,
            part=part.part,
            parts=part.parts,
            stretto=_version(),
            torch=str(torch.__version__),
            nbytes=nbytes,
            shared=msgspec.Raw(part.shared),
            own=msgspec.Raw(part.own),
            tensors=tuple(
                msgspec.structs.replace(s, digest=d) for (s, _), d in zip(part.tensors, digests, strict=True)
            ),
        )
    )
    return msgspec.json.encode(_Envelope(FORMAT, _digest(said), msgspec.Raw(said)))


def read_manifest(text: bytes) -> Manifest:
    """What :func:`manifest` wrote.

    Raises:
        DataError: it is damaged or cut short, or of another format.
    """
    try:
        envelope = msgspec.json.decode(text, type=_Envelope)
        if envelope.format != FORMAT:
            raise DataError(
                f"it has format {envelope.format}, and this version reads {FORMAT}; use the version that wrote it"
            )
        said = bytes(envelope.manifest)
        if _digest(said) != envelope.digest:
            raise DataError("its manifest is damaged: its digest is not the one that was written")
        return msgspec.json.decode(said, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DataError(f"its manifest is damaged or cut short: {e}") from e


def _stored(state: Literal["shared", "own"], flat: Flat, numbers: Iterable[int]) -> list[tuple[Stored, Tensor]]:
    known = entries(flat.facts)
    return [(Stored(state, i, known[i].name, known[i].dtype, known[i].laid), flat.tensors[i]) for i in numbers]


def _digest(said: bytes) -> str:
    return hashlib.blake2b(said, digest_size=16).hexdigest()


def _version() -> str:
    try:
        return version("stretto")
    except PackageNotFoundError:
        return "not installed"
