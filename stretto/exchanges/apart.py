"""What one agent reads of another, by itself: a tensor, coded, and what its own payload decodes to."""

from __future__ import annotations

from torch import Tensor

from stretto.codecs.identity import Identity
from stretto.core import Codec, Like, Payload, State
from stretto.errors import UsageError


def check_apart(codec: Codec, who: str) -> None:
    """Can a payload be read without those of all the others?

    Raises:
        UsageError: it cannot: ``codec`` is read as a mean only, or all agents must have encoded as often.
    """
    if codec.summable and str(codec) != str(Identity()):
        raise UsageError(
            f"{who}: codec {codec} is read as the mean of all agents, and here two meet: use identity, or one whose "
            "payloads are read by themselves, such as int8"
        )


def written(x: Tensor, codec: Codec, like: Like, state: State) -> tuple[Payload, Tensor, State]:
    """The payload of ``x``, what every reader takes it for (its writer too), and the codec's state from here on.

    Raises:
        NonFinite: it holds NaN or infinity, which the codec cannot send.
    """
    payload, state = codec.encode(x, like, state)
    read, state = codec.decode(payload, like, state)
    return payload, read, state
