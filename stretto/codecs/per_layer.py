"""Another codec for some parameters: biases and norms as they are, embeddings in fewer bits, the rest in more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from stretto.codecs.base import Base, one
from stretto.codecs.identity import Identity
from stretto.codecs.integers import Int8
from stretto.core import Codec, Groups, Like, Named, Payload, State, mixed
from stretto.errors import UsageError
from stretto.text import coerce, named

ROLES: Final = {"biases": "bias", "norms": "norm", "embeddings": "embedding"}
_FEW: Final = 4
"""Names that an error tells of those that there are."""


@named("per_layer", kind="codec")
@dataclass(frozen=True)
class PerLayer(Base):
    """Parameters that a key of ``codecs`` fits travel by its codec, and all others by ``rest``.

    A key is ``biases``, ``norms`` or ``embeddings``, or a pattern of names such as ``'embed.*'`` (with ``*``, ``?`` and
    ``[…]``); the first that fits counts. A part of a model may hold nothing of what a key is for; a pattern that fits
    nothing in the whole of it is a slip: see :meth:`check`. :meth:`explain` tells what went where.

    An exchange carries each of the :meth:`groups` by its own codec, so that what can be added on its way is. Read by
    itself, the payload of all is one after the other.

    >>> str(PerLayer({"norms": "identity", "head.*": "lowrank(2)"}, rest="int4"))
    "per_layer({norms: identity, 'head.*': lowrank(2)}, rest=int4)"

    Raises:
        UsageError: a key is no text, or what is given for it is no codec.
    """

    when: ClassVar[str] = "some parameters bear less loss, or are few"

    codecs: Any = (("biases", Identity()), ("norms", Identity()))
    rest: Codec = field(default=Int8(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "codecs", _pairs(self.codecs))
        object.__setattr__(self, "rest", coerce(self.rest, "codec"))

    @property
    def unbiased(self) -> bool:
        return all(codec.unbiased for codec in self._all)

    @property
    def contracts(self) -> bool:
        return all(codec.contracts for codec in self._all)

    @property
    def exact(self) -> bool:
        return all(codec.exact for codec in self._all)

    @property
    def _all(self) -> tuple[Codec, ...]:
        return (*(codec for _, codec in self.codecs), self.rest)

    def groups(self, like: Like) -> Groups:
        """One for each codec that has a parameter, however many keys name it."""
        found: dict[Codec, list[tuple[int, int]]] = {codec: [] for codec in self._all}
        at = 0
        for piece in like.pieces:
            ranges, stop = found[self._codec_for(piece)], at + piece.numel
            start = ranges.pop()[0] if ranges and ranges[-1][1] == at else at
            if start < stop:
                ranges.append((start, stop))
            at = stop
        return tuple((codec, tuple(ranges)) for codec, ranges in found.items() if ranges)

    def check(self, parameters: Iterable[Named]) -> None:
        """That every pattern fits one of these, which are all there are. A model without biases may do without.

        Raises:
            UsageError: one fits none; names it, and some that there are.
        """
        pieces = list(parameters)
        for key, _ in self.codecs:
            if key not in ROLES and not any(_fits(key, piece) for piece in pieces):
                names = ", ".join(piece.name for piece in pieces[:_FEW]) + (", …" if len(pieces) > _FEW else "")
                raise UsageError(
                    f"per_layer: {key!r} fits no parameter of {names}: write {', '.join(ROLES)} or a pattern of these "
                    "names"
                )

    def explain(self, like: Like) -> list[str]:
        """For each parameter a line that says by which codec it travels."""
        return [f"{piece.name or 'the tensor'} travels by {self._codec_for(piece)}" for piece in like.pieces]

    def _codec_for(self, piece: Named) -> Codec:
        fitting = (codec for key, codec in self.codecs if _fits(key, piece))
        return next(fitting, self.rest)

    def init(self, like: Like) -> State:
        return [part.codec.init(part.like) for part in self._parts(like)]

    def encode(self, x: Tensor, like: Like, state: State) -> tuple[Payload, State]:
        """
        Raises:
            UsageError: a codec's payload says nothing by itself, or not how long it is: such travel by groups only.
        """
        self._check_alone()
        flat, out, states = x.detach().reshape(-1), [torch.empty(0, dtype=torch.uint8)], []
        for part, before in zip(self._parts(like), state, strict=True):
            mine = part.gather(flat)
            mine = mine.to(like.dtype) if part.codec.summable else mine
            (payload,), after = part.codec.encode(mine, part.like, before)
            out.append(payload.contiguous().view(torch.uint8))
            states.append(after)
        return (torch.cat(out),), states

    def decode(self, payload: Payload, like: Like, state: State) -> tuple[Tensor, State]:
        raw, out, states = one(payload, self.size(like), self), torch.empty(like.numel, dtype=like.dtype), []
        for part, before in zip(self._parts(like), state, strict=True):
            size = part.codec.size(part.like)
            x, after = part.codec.decode((raw[:size].clone().view(part.form),), part.like, before)
            part.scatter(x, out)
            states.append(after)
            raw = raw[size:]
        return out.view(like.shape), states

    def kept(self, like: Like, state: State) -> Tensor | None:
        out: Tensor | None = None
        for part, inner in zip(self._parts(like), state, strict=True):
            found = part.codec.kept(part.like, inner)
            if found is not None:
                out = torch.zeros(like.numel, dtype=torch.float32) if out is None else out
                part.scatter(found, out)
        return out

    def size(self, like: Like) -> int:
        return sum(part.codec.size(part.like) for part in self._parts(like))

    def bound(self, x: Tensor) -> float:
        """Without knowing which element is whose: all that there is if each codec contracts, and else no bound."""
        return float(torch.linalg.vector_norm(x, dtype=torch.float64)) if self.contracts else math.inf

    def _parts(self, like: Like) -> list[Part]:
        return [Part(codec, ranges, _joined(like, ranges, i)) for i, (codec, ranges) in enumerate(self.groups(like))]

    def _check_alone(self) -> None:
        for codec in self._all:
            if codec.passes > 1 or not codec.exact:
                raise UsageError(f"{codec} inside per_layer travels by groups only: give per_layer to a strategy")


class Part(NamedTuple):
    """A group: its codec, its ranges of the flat tensor, and what they are like after each other."""

    codec: Codec
    ranges: tuple[tuple[int, int], ...]
    like: Like

    @property
    def form(self) -> torch.dtype:
        """What the payload consists of; that of an empty tensor tells."""
        nothing = Like((0,), self.like.dtype)
        (payload,), _ = self.codec.encode(torch.empty(0, dtype=nothing.dtype), nothing, self.codec.init(nothing))
        return payload.dtype

    def gather(self, flat: Tensor) -> Tensor:
        pieces = [flat[start:stop] for start, stop in self.ranges]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def scatter(self, x: Tensor, out: Tensor) -> None:
        for (start, stop), piece in zip(self.ranges, x.split([b - a for a, b in self.ranges]), strict=True):
            out[start:stop] = piece


def _joined(like: Like, ranges: Iterable[tuple[int, int]], number: int) -> Like:
    pieces = tuple(piece for start, stop in ranges for piece in like.part(start, stop, 0).pieces)
    numel = sum(piece.numel for piece in pieces)
    return Like((numel,), like.dtype, pieces, mixed(like.seed, number), mixed(like.own, number))


def _fits(key: str, piece: Named) -> bool:
    return piece.role == ROLES[key] if key in ROLES else fnmatchcase(piece.name, key)


def _pairs(codecs: Any) -> tuple[tuple[str, Codec], ...]:
    try:
        pairs = [(key, value) for key, value in (codecs.items() if isinstance(codecs, Mapping) else codecs)]
    except (TypeError, ValueError):
        raise UsageError(f"per_layer({codecs}): write pairs, such as {{biases: identity, 'embed.*': int4}}") from None
    for key, _ in pairs:
        if not isinstance(key, str) or not key:
            raise UsageError(f"per_layer: {key!r} is neither {', '.join(ROLES)} nor a pattern of names")
    return tuple((key, coerce(value, "codec")) for key, value in pairs)
