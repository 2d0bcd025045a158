"""How much more memory each codec takes at its peak than what it was given: a process of its own, which prints JSON.

Each work is done by a child, whose peak of resident memory the system tells. The difference to a child that does the
same with a small tensor is what the large one takes.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from contracts.coding import alone, copied, filled
from contracts.parts import all_codecs
from stretto.core import Codec, Like, Named, Payload
from stretto.errors import DamagedPayload

ROWS, COLUMNS = 2000, 4000
NBYTES = 4 * ROWS * COLUMNS
MMAP_THRESHOLD = -3


def main() -> None:
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)
    like = Like((ROWS * COLUMNS,), torch.float32, (Named("embed.weight", (ROWS, COLUMNS), "embedding"),))
    x = filled(like.shape, "normal", torch.float32, 0)
    print(json.dumps({str(codec): peaks(codec, x, like) for codec in all_codecs()}))


def peaks(codec: Codec, x: torch.Tensor, like: Like) -> dict[str, float]:
    """In inputs: of an encode with all its passes, without the payload, and of decoding what is damaged."""
    ((codec, _),) = codec.groups(like)
    small = Like((600,), torch.float32, (Named("embed.weight", (20, 30), "embedding"),))

    def begin() -> None:
        alone(codec, x[:600], small)

    state = copied(codec.init(like))
    payload, after = encode(codec, x, like, state)
    least = lived(begin)
    return {
        "encode": (lived(lambda: (begin(), encode(codec, x, like, state))) - least - codec.size(like)) / NBYTES,
        "decode": (lived(lambda: (begin(), decode_damaged(codec, payload, like, after))) - least) / NBYTES,
    }


def encode(codec: Codec, x: torch.Tensor, like: Like, state: object) -> tuple[Payload, object]:
    payload, state = codec.encode(x, like, state)
    for _ in range(codec.passes - 1):
        payload, state = codec.refine(payload, like, state)
    return payload, state


def decode_damaged(codec: Codec, payload: Payload, like: Like, state: object) -> None:
    if not codec.summable:
        payload = (payload[0].clone().random_(0, 256),)
    with suppress(DamagedPayload):
        codec.decode(payload, like, state)


def lived(work: Callable[[], object]) -> float:
    """The bytes that a child of this process has at its peak, while it works."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    assert status == 0, f"the child ended with {status}"
    assert isinstance(usage, resource.struct_rusage)
    return usage.ru_maxrss * 1024.0


main()
