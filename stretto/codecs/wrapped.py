"""A codec inside another, given as a value or as its text."""

from __future__ import annotations

from typing import Any

from stretto.core import Codec
from stretto.errors import UsageError
from stretto.text import coerce


def codec_of(value: Any, around: str) -> Codec:
    """
    Raises:
        UsageError: it is none.
    """
    codec: Codec = coerce(value, "codec")
    if getattr(codec, "kind", None) != "codec":
        raise UsageError(f"{around}: {value} is no codec; write one such as int8 or topk(0.01)")
    return codec
