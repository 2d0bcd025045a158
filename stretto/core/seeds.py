"""Seeds out of seeds: what is drawn in one place has nothing in common with what is drawn in another."""

from __future__ import annotations

import hashlib


def mixed(*numbers: int) -> int:
    """63 bits from all of them, so that neighbouring seeds have nothing in common."""
    raw = ":".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2s(raw, digest_size=8).digest()) >> 1
