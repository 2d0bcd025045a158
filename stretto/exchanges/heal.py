"""A newcomer gets the state that the others have: in pieces, from several donors at once, checked by a digest.

Each donor says how long the state is and what it hashes to. The newcomer asks each for one piece after the other, with
a second one under way, and whoever is quicker gives more. When a donor goes, its pieces are asked of the others; when
the newcomer's epoch ends it keeps what it has and goes on in the next one.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stretto.core import Link
from stretto.errors import Disagreement, PeerLost

PIECE = 1 << 20
_SIZE, _ASK, _GIVE = range(3)
_NO_MORE = -1
_UNDER_WAY = 2
_DIGEST = 16


@dataclass(frozen=True, slots=True)
class Offer:
    """What the donors have: ``nbytes`` that hash to ``digest``. ``donors`` are ranks of this epoch."""

    nbytes: int
    digest: bytes
    donors: tuple[int, ...]


@dataclass(slots=True)
class Arriving:
    """A state as far as it has come: ``memory`` (uint8) and the offsets of the pieces that are missing."""

    digest: bytes
    memory: Tensor
    missing: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.missing.extend(range(0, len(self.memory), PIECE))


async def donate(link: Link, to: int, state: Tensor) -> None:
    """Give ``state`` (uint8) to the newcomer ``to``, as it asks for it.

    Raises:
        PeerLost: the newcomer is gone.
    """
    digest = await digest_of(link, state)
    head = torch.tensor([len(state)]), torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    link.post(to, head, _SIZE)
    while (offset := int((await link.recv(to, _ASK)).payload[0])) != _NO_MORE:
        link.post(to, (state[offset : offset + PIECE],), _GIVE)
    await link.drain()


async def offered(link: Link, donors: Sequence[int]) -> Offer:
    """What most donors offer: they hold the same, or are not asked.

    Raises:
        PeerLost: all donors are gone.
    """
    heads = await link.together(*(_head(link, donor) for donor in donors))
    offers = Counter(head for head in heads if head is not None)
    if not offers:
        raise PeerLost(f"all {len(donors)} agents that could have given agent {link.rank} the model are gone")
    (nbytes, digest), _ = offers.most_common(1)[0]
    return Offer(nbytes, digest, tuple(d for d, h in zip(donors, heads, strict=True) if h == (nbytes, digest)))


async def fetch(link: Link, donors: Sequence[int], arriving: Arriving) -> None:
    """Fill ``arriving`` from the donors.

    Raises:
        PeerLost: all donors are gone; what has come is kept.
        Disagreement: it came, and is not what was offered.
    """
    living = list(donors)
    while arriving.missing:
        stayed = await link.together(*(_ask(link, donor, arriving) for donor in living))
        living = [donor for donor, stays in zip(living, stayed, strict=True) if stays]
        if arriving.missing and not living:
            raise PeerLost(f"all donors of agent {link.rank} are gone before it had the whole state")
    if await digest_of(link, arriving.memory) != arriving.digest:
        raise Disagreement(
            f"the state that rank {link.rank} was given by {list(living)} is not the one that they offered: start it "
            "again; if that repeats, memory or a network card is broken"
        )
    for donor in living:
        link.post(donor, (torch.tensor([_NO_MORE]),), _ASK)
    await link.drain()


async def digest_of(link: Link, state: Tensor) -> bytes:
    """Of uint8; other coroutines run between pieces."""
    found = hashlib.blake2b(digest_size=_DIGEST)
    for piece in state.split(4 * PIECE):
        found.update(piece.numpy())
        await link.sleep(0.0)
    return found.digest()


async def _head(link: Link, donor: int) -> tuple[int, bytes] | None:
    try:
        size, digest = (await link.recv(donor, _SIZE)).payload
    except PeerLost:
        return None
    return int(size), bytes(digest.tolist())


async def _ask(link: Link, donor: int, arriving: Arriving) -> bool:
    """Whether the donor stays. Whatever it still owed when it went, or when our epoch ended, is missing again."""
    asked: deque[int] = deque()
    try:
        while arriving.missing or asked:
            while arriving.missing and len(asked) < _UNDER_WAY:
                asked.append(arriving.missing.popleft())
                link.post(donor, (torch.tensor([asked[-1]]),), _ASK)
            await link.recv(donor, _GIVE, arriving.memory[asked[0] : asked[0] + PIECE])
            asked.popleft()
        return True
    except PeerLost:
        return False
    finally:
        arriving.missing.extend(asked)
