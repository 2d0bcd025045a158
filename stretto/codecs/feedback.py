"""Error feedback: what a codec loses is remembered, and sent with what comes next.

Theory of operation (Seide et al.: 1-bit stochastic gradient descent, Interspeech 2014, section 2; Karimireddy, Rebjock,
Stich, Jaggi: Error feedback fixes SignSGD, ICML 2019, algorithm 2). With x the tensor, e the residual, C the codec and
d the decay,

    y = x + d e        C(y) is sent        e' = y - C(y)

so that with d = 1 all that is ever given is sent, sooner or later, and what is late stays bounded if C contracts.
With d < 1 it is a momentum, too: y = d y + x where C sends little of it (Peng et al.: DeMo, arXiv 2411.19870, algorithm
1; Sarfi et al.: SparseLoCo, arXiv 2508.15706, algorithm 1), and of what is late d of it is left after each round.
C(y) is what this agent's own payload decodes to, not the mean: so each residual is what that agent has not sent yet,
and all of them together are what the mean lacks.

The state of a finished round is never written: there is a new residual each time, so one may go back to any round
before. In mid-round, between two passes, y rests in the state, and the last pass makes the residual of it in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from stretto.codecs.base import Base, floats
from stretto.codecs.identity import Identity
from stretto.codecs.topk import TopK
from stretto.core import Codec, Groups, Like, Payload, State
from stretto.errors import UsageError
from stretto.text import coerce, named


@named("feedback", kind="codec")
@dataclass(frozen=True)
class Feedback(Base):
    """What ``codec`` loses, the residual, is added to what it is given next, times ``decay``.

    The residual (float32, as long as the tensor) is what this agent has not sent yet. It is saved with the state, and
    added to the next exchange after a fence. Only a death loses it: what the dead had held back, nobody else knows.
    The codec is given float32, whatever the tensor is: ``topk(0.01)+bf16`` sends values of two bytes. While something
    is not finite and may pass (``nonfinite="pass"``), the residual stays what it was; it is of gradients as they were
    scaled then, so when a scaler halves its scale, what was held back counts double.

    Seide et al. 2014, section 2; Karimireddy et al. 2019, algorithm 2.

    Raises:
        UsageError: ``codec`` may lose more than there is, or ``decay`` is not above 0 and at most 1.
    """

    paper: ClassVar[str] = "Seide et al. 2014; Karimireddy et al. 2019"
    when: ClassVar[str] = "around whatever drops or rounds much: topk, sign, int2, lowrank"

    codec: Codec = TopK(0.01)  # noqa: RUF009
    decay: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "codec", coerce(self.codec, "codec"))
        if not self.codec.contracts or isinstance(self.codec, Identity):
            raise UsageError(f"{self}: {_refused(self.codec)}")
        if not 0 < self.decay <= 1:
            raise UsageError(f"{self}: decay must be above 0 and at most 1; 1 forgets nothing, 0.95 is usual")

    @property
    def summable(self) -> bool:
        return self.codec.summable

    @property
    def contracts(self) -> bool:
        return False

    @property
    def passes(self) -> int:
        return self.codec.passes

    @property
    def exact(self) -> bool:
        return self.codec.exact

    def groups(self, like: Like) -> Groups:
        groups = self.codec.groups(like)
        return tuple((c if isinstance(c, Identity) else replace(self, codec=c), ranges) for c, ranges in groups)

    def init(self, like: Like) -> State:
        inner = self.codec.init(_inner(like))
        return {"inner": inner, "residual": torch.zeros(like.numel, dtype=torch.float32)}

    def encode(self, x: Tensor, like: Like, state: State) -> tuple[Payload, State]:
        y = torch.add(floats(x), state["residual"], alpha=self.decay)
        payload, inner = self.codec.encode(y, _inner(like), state["inner"])
        whole = None if self._passing and not y.isfinite().all() else y
        state = {"inner": inner, "residual": state["residual"], "whole": whole, "pass": 1}
        return payload, self._settled(payload, like, state)

    def refine(self, mean: Payload, like: Like, state: State) -> tuple[Payload, State]:
        payload, inner = self.codec.refine(mean, _inner(like), state["inner"])
        state = {**state, "inner": inner, "pass": state["pass"] + 1}
        return payload, self._settled(payload, like, state)

    def decode(self, payload: Payload, like: Like, state: State) -> tuple[Tensor, State]:
        x, inner = self.codec.decode(payload, _inner(like), state["inner"])
        return _narrowed(x, like.dtype).view(like.shape), {**state, "inner": inner}

    def kept(self, like: Like, state: State) -> Tensor | None:
        inner: Tensor | None = self.codec.kept(_inner(like), state["inner"])
        residual: Tensor = state["residual"] * self.decay
        return residual if inner is None else residual + inner

    def size(self, like: Like) -> int:
        return self.codec.size(_inner(like))

    def bound(self, x: Tensor) -> float:
        """Of ``x`` with the residual; and that is only late."""
        return self.codec.bound(floats(x))

    @property
    def _passing(self) -> bool:
        """May it be given what is not finite, and not raise? A codec's text tells that of all that it holds."""
        return "nonfinite='pass'" in str(self.codec)

    def _settled(self, payload: Payload, like: Like, state: Any) -> State:
        """After the last pass, with the new residual."""
        if state["pass"] < self.passes:
            return state
        y, inner = state["whole"], state["inner"]
        residual = state["residual"] if y is None else self._left(y, payload, _inner(like), inner)
        return {"inner": inner, "residual": residual}

    def _left(self, y: Tensor, payload: Payload, like: Like, inner: State) -> Tensor:
        """``y`` without what ``payload`` holds of it; in the memory of ``y``, unless that is the payload's."""
        if any(_share(y, part) for part in payload):
            y = y.clone()
        self.codec.take(y, payload, like, inner)
        return y


def _inner(like: Like) -> Like:
    return replace(like, shape=(like.numel,), dtype=torch.float32)


def _narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A sum may be beyond a dtype whose numbers it is of; then it is the largest of these."""
    most = torch.finfo(dtype).max
    if most >= torch.finfo(x.dtype).max:
        return x.to(dtype)
    return x.clamp(-most, most).where(x.isfinite(), x).to(dtype)


def _share(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _refused(codec: Codec) -> str:
    if isinstance(codec, Identity):
        return "identity loses nothing that could be sent later: use it alone"
    if isinstance(codec, Feedback):
        return "what feedback loses is remembered already: use it alone"
    instead = "it is unbiased and needs no feedback: use it alone, or feed back" if codec.unbiased else "feed back"
    return (
        f"{codec} may lose more than there is, and what is held back would grow without end; {instead} one that never "
        "does, such as topk(0.01), sign, int4 or lowrank"
    )
