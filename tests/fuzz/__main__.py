"""Long fuzzing of what strangers can reach: ``python tests/fuzz [SECONDS [SEED]]``; ``make fuzz`` takes five minutes.

Three targets take turns: the handshake, the frames of links, the messages of the rendezvous. Inputs are random bytes
and valid conversations with bytes changed, cut, doubled and inserted. Each must end in what the protocol gives or in
the error it names; anything else, more memory than is bounded, or a turn of more than a second of processor time, ends
the run with the seed that repeats it.
"""

from __future__ import annotations

import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from stretto.errors import NetworkError, ProtocolError
from stretto.links import wire
from stretto.links.handshake import ANYONE, Claim, Handshake, Purpose
from stretto.membership import Decoder, Hello, Report, Seat, View, Vote, encode
from stretto.membership.messages import LONGEST, Ballot, Decide, Leave, Prepare, Promise

MOST_MEMORY = 4 << 20
SLOWEST = 1.0


def frames(rng: random.Random) -> None:
    """A reader of frames, fed in pieces of any size."""
    stream = b"".join(_frame(rng) for _ in range(rng.randrange(4)))
    reader = wire.FrameReader(
        lambda frame: memoryview(_room)[: frame.length] if frame.length <= len(_room) else _stop()
    )
    try:
        for piece in _pieces(rng, _altered(rng, stream)):
            at = 0
            while at < len(piece):
                space = reader.space()
                count = min(len(space), len(piece) - at)
                space[:count] = piece[at : at + count]
                at += count
                for frame, body in reader.advance(count):
                    wire.tensors(frame, bytearray(body))
    except (ProtocolError, _Stop):
        pass


def messages(rng: random.Random) -> None:
    """What is said on control connections."""
    seat = Seat(5, 1, "host", 7, ("10.0.0.1:1", "unix:x"), ("10.0.0.1:2",))
    report = Report(5, 9, True, b"\0\1", True, True, "digest")
    view = View(2, (seat,) * 3, (5, 6), 5, (report,), 9, "agent 2 was lost", 0.1, 1e9)
    ballot = Ballot(1, 5)
    vote = Vote(5, 3, ballot, ballot, view)
    known = (
        Hello(seat, 3, 2, vote),
        Leave(),
        Prepare(view, ballot),
        Promise(3, ballot, vote, report),
        Decide(view),
    )
    stream = b"".join(encode(rng.choice(known)) for _ in range(rng.randrange(4)))
    decoder = Decoder(LONGEST)
    try:
        for piece in _pieces(rng, _altered(rng, stream)):
            decoder.feed(piece)
    except ProtocolError:
        pass


def handshake(rng: random.Random) -> None:
    """Either side of the proof, against a partner whose words are altered: never done, unless nothing was."""
    claims = (Claim(Purpose.LINK, 1, 1, 0), Claim(Purpose.LINK, 1, 0, ANYONE))
    dials = Handshake(rng.choice(("secret", "other")), claims[0], dials=True)
    answers = Handshake("secret", claims[1], dials=False)
    sides, to, harmed = (answers, dials), 0, False
    words = dials.opening()
    for _ in range(6):
        heard = _altered(rng, words) if rng.random() < 0.4 else words
        harmed = harmed or heard[: len(words)] != words
        try:
            words = b"".join(_told(sides[to], piece) for piece in _pieces(rng, heard))
        except NetworkError:
            words = sides[to].farewell
        to = 1 - to
    if harmed and answers.done and dials.done:
        raise AssertionError("both sides believe a conversation that was altered")


def _told(side: Handshake, data: bytes) -> bytes:
    """What a side answers; it never reads more than it wants, and what follows the proof is left."""
    answer = b""
    while data and side.wants:
        wanted = side.wants
        answer += side.receive(data[:wanted])
        data = data[wanted:]
    return answer


def _frame(rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return wire.control(rng.choice((wire.CREDIT, wire.BYE)), rng.randrange(5), rng.randrange(1 << 32))
    payload = tuple(
        torch.zeros([rng.randrange(4) for _ in range(rng.randrange(4))], dtype=rng.choice((torch.float32, torch.int8)))
        for _ in range(rng.randrange(4))
    )
    head, views, _ = wire.encode(rng.randrange(5), rng.randrange(5), payload)
    return head + b"".join(bytes(v) for v in views)


def _altered(rng: random.Random, stream: bytes) -> bytes:
    data = bytearray(stream or rng.randbytes(rng.randrange(600)))
    for _ in range(rng.choice((0, 1, 1, 2, 8))):
        if not data:
            break
        at, end = rng.randrange(len(data)), rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = rng.randbytes(rng.randrange(40))
            case _:
                data += data[at:end]
    return bytes(data[:20_000])


def _pieces(rng: random.Random, data: bytes) -> list[bytes]:
    most = rng.choice((1, 7, 100, 1 << 20))
    pieces, at = [], 0
    while at < len(data):
        count = rng.randint(1, most)
        pieces.append(data[at : at + count])
        at += count
    return pieces


class _Stop(Exception):
    """A body within the bound that this run has no room for."""


def _stop() -> memoryview:
    raise _Stop


_room = bytearray(1 << 20)


def run(seconds: float, seed: int) -> dict[str, int]:
    """Fuzz for so long; how many turns each target had."""
    targets: tuple[Callable[[random.Random], None], ...] = (frames, messages, handshake)
    turns = {t.__name__: 0 for t in targets}
    tracemalloc.start()
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        for target in targets:
            number = turns[target.__name__]
            turns[target.__name__] += 1
            name = f"{target.__name__} {seed} {number}"
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            begun = time.process_time()
            try:
                target(random.Random(name))
            except BaseException:
                print(f"failed: {name}; repeat it with random.Random({name!r})", file=sys.stderr)
                raise
            taken = time.process_time() - begun
            _, peak = tracemalloc.get_traced_memory()
            assert taken < SLOWEST, f"{name} took {taken:.1f} s"
            assert peak - before < MOST_MEMORY, f"{name} took {peak - before} bytes"
    return turns


if __name__ == "__main__":
    length = float(sys.argv[1]) if len(sys.argv) > 1 else 300.0
    start = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"fuzzing for {length:g} s, seed {start}", flush=True)
    print(", ".join(f"{name}: {count} turns" for name, count in run(length, start).items()))
