"""Elements that all agents draw alike: they are added on their way, and nothing has to say where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from stretto.codecs.base import not_finite
from stretto.codecs.sparse import Selected, Selecting, check_fraction, finite, flattened, fraction_of, norm
from stretto.codecs.strata import Strata, strata
from stretto.core import Like, Payload, State, mixed
from stretto.errors import DamagedPayload
from stretto.text import named


@named("randomk", kind="codec")
@dataclass(frozen=True)
class RandomK(Selecting):
    """One of the elements of each of k equal parts, at random; k is the ``fraction`` of them, at least one.

    ``scaled``: times the length of its part, which is unbiased and of large variance (what exceeds the dtype ends at
    its largest number); else as it is, for feedback. With ``nonfinite="pass"`` one NaN or infinity makes all k NaN.

    Stich, Cordonnier, Jaggi: Sparsified SGD with memory, 2018, definition 2.2. The scaled one: Konečný, Richtárik:
    Randomized distributed mean estimation, 2018, section 3. That one is drawn of each part, and not k of all, makes the
    draw cheap and changes no element's chance.

    Raises:
        UsageError: ``fraction`` is not above 0 and at most 1.
    """

    paper: ClassVar[str] = "Stich et al. 2018, Sparsified SGD with Memory (arXiv 1809.07599), definition 2.2"
    when: ClassVar[str] = "many agents and a slow network: it is added on its way; unscaled with feedback"

    fraction: float = 0.01
    scaled: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.fraction, self)

    @property
    def summable(self) -> bool:
        return True

    @property
    def unbiased(self) -> bool:
        return self.scaled

    @property
    def contracts(self) -> bool:
        return not self.scaled

    def init(self, like: Like) -> State:
        return {"draws": 0}

    def slots(self, like: Like) -> int:
        return fraction_of(like.numel, self.fraction)

    def room(self, like: Like) -> int:
        return 0

    def dtype(self, like: Like) -> torch.dtype:
        return torch.promote_types(like.dtype, torch.float32)

    def select(self, x: Tensor, like: Like, state: State) -> Selected:
        flat = flattened(x, like.dtype)
        selected = Selected.of(self.slots(like), self.dtype(like), 0, {"draws": state["draws"] + 1})
        for values, drawn in self._drawn(selected.values, like, state["draws"]):
            values.copy_(flat[drawn.at])
        if not finite(flat):
            if self.nonfinite == "raise":
                raise not_finite(flat, like, self)
            selected.values.fill_(torch.nan)
        return selected

    def place(self, values: Tensor, where: Tensor, like: Like, state: State) -> Tensor:
        out = torch.zeros(like.numel, dtype=like.dtype)
        for part, drawn in self._drawn(values, like, state["draws"] - 1):
            out[drawn.at] = self._estimate(part, drawn, like.dtype)
        return out.view(like.shape)

    def subtract(self, values: Tensor, where: Tensor, y: Tensor, like: Like, state: State) -> None:
        for part, drawn in self._drawn(values, like, state["draws"] - 1):
            y[drawn.at] -= self._estimate(part, drawn, like.dtype)

    def encode(self, x: Tensor, like: Like, state: State) -> tuple[Payload, State]:
        selected = self.select(x, like, state)
        return (selected.values,), selected.state

    def _read(self, payload: Payload, like: Like) -> tuple[Tensor, Tensor]:
        if len(payload) != 1 or payload[0].dtype != self.dtype(like) or payload[0].shape != (self.slots(like),):
            found = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in payload) or "nothing"
            raise DamagedPayload(f"{self} was given {found} to decode instead of {self.slots(like)} values")
        return payload[0], payload[0].new_empty(0, dtype=torch.uint8)

    def bound(self, x: Tensor) -> float:
        """Unscaled, what is not drawn; scaled, what is drawn becomes up to a part's length of itself."""
        k = fraction_of(x.numel(), self.fraction)
        longest = -(-x.numel() // k) if k and self.scaled else 1
        rounded = longest * torch.finfo(x.dtype).eps if longest > 1 else 0
        return (max(longest - 1, int(k < x.numel())) + rounded) * norm(x)

    def _estimate(self, values: Tensor, drawn: Strata, dtype: torch.dtype) -> Tensor:
        most = torch.finfo(dtype).max
        return (values * drawn.width if self.scaled else values).clamp(-most, most).to(dtype)

    def _drawn(self, values: Tensor, like: Like, draws: int) -> Iterator[tuple[Tensor, Strata]]:
        """Some of the values at a time, and where they belong."""
        for drawn in strata(like.numel, self.slots(like), mixed(like.seed, draws)):
            yield values[drawn.first : drawn.first + len(drawn.at)], drawn
