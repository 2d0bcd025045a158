"""The exception tree: every error says who, what, and what to do next, and carries its exit code.

StrettoError            1
├── UsageError          2   what was asked cannot be done as asked
│   └── UnknownName         no such strategy, link, topology, codec or workload
├── NetworkError        3   the others cannot be reached, or should not be
│   ├── PeerLost            an agent left while we needed it
│   ├── Refused             a stranger, another version, or another secret
│   └── ProtocolError       bytes that no agent of ours would send
│       └── DamagedPayload      a tensor that cannot be decoded
├── Disagreement        4   agents hold different models, data or strategies
├── Diverged            7   the training has left the finite numbers
├── DataError           5   files are missing or damaged
│   └── NonFinite           5   NaN or infinity where a codec cannot send it
└── ScriptFailed        6   the user's script raised in an agent
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class StrettoError(Exception):
    """Root of everything raised on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(StrettoError):
    exit_code = 2


class UnknownName(UsageError):
    """A name that is not registered; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"no {kind} is named {name!r}; {hint}")


class NetworkError(StrettoError):
    exit_code = 3


class PeerLost(NetworkError):
    """An agent left, or its connection broke, while it was needed.

    ``peer`` is its rank in the epoch.
    """

    def __init__(self, message: str, peer: int = -1) -> None:
        super().__init__(message)
        self.peer = peer


class Refused(NetworkError):
    pass


class ProtocolError(NetworkError):
    pass


class DamagedPayload(ProtocolError):
    pass


class Disagreement(StrettoError):
    exit_code = 4


class RunLost(StrettoError):
    """What cannot be had again is gone: go on from the last checkpoint."""


class Diverged(StrettoError):
    exit_code = 7


class DataError(StrettoError):
    exit_code = 5


class NonFinite(DataError):
    pass


class ScriptFailed(StrettoError):
    exit_code = 6
