"""Votes that outlive their process: one small file for each label, replaced as a whole."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from stretto.membership.messages import Vote

_decoder = msgspec.msgpack.Decoder(Vote)


def keep(folder: Path, label: int, vote: Vote | None) -> None:
    """Write it so that it is there after whatever happens next; None: forget it."""
    path = folder / f"vote-{label}"
    if vote is None:
        path.unlink(missing_ok=True)
        return
    draft = path.with_suffix(".new")
    with draft.open("wb") as f:
        f.write(msgspec.msgpack.encode(vote))
        f.flush()
        os.fsync(f.fileno())
    draft.replace(path)


def kept(folder: Path | None, label: int | None) -> Vote | None:
    """The vote of the process that had this label before us; None where it left none that can be read."""
    if folder is None or label is None:
        return None
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return _decoder.decode((folder / f"vote-{label}").read_bytes())
    return None
