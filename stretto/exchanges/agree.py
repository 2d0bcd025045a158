"""Do all agents hold the same? Digests are compared on the way up a tree; only a difference costs more."""

from __future__ import annotations

import hashlib
from itertools import zip_longest

import torch
from torch import Tensor

from stretto.core import Link
from stretto.errors import Disagreement
from stretto.topologies.tree import Tree

DIGEST = 16
NOBODY = -1
COMPARE, VERDICT, EVIDENCE, REPORT = range(4)


async def agree(link: Link, what: str, text: str) -> None:
    """Return if ``text`` is the same at every agent.

    Raises:
        Disagreement: at every agent, with one message: which agent differs from agent 0, and the first line that does.
        PeerLost: an agent is gone.
    """
    if link.size == 1:
        return
    role = Tree().graph(link.hosts).roles(link.rank)[0]
    mine = hashlib.blake2s(text.encode(), digest_size=DIGEST).digest()
    odd = await _compare(link, mine, role.parent, role.children)
    if link.rank == 0:
        verdict = torch.tensor([odd])
    else:
        verdict = (await link.recv(role.parent, VERDICT)).payload[0]
        odd = int(verdict)
    for child in role.children:
        link.post(child, (verdict,), VERDICT)
    if odd != NOBODY:
        report = await _explain(link, what, text, odd, role.parent, role.children)
        await link.drain()
        raise Disagreement(report)
    await link.drain()


async def _compare(link: Link, mine: bytes, parent: int, children: tuple[int, ...]) -> int:
    """The lowest agent at or below this one whose digest is not this one's; told to the parent with the digest."""
    odd = NOBODY
    for child in children:
        digest, below = (await link.recv(child, COMPARE)).payload
        found = int(below) if bytes(digest.tolist()) == mine else child
        if found != NOBODY and (odd == NOBODY or found < odd):
            odd = found
    if parent != link.rank:
        link.post(parent, (torch.tensor(list(mine), dtype=torch.uint8), torch.tensor([odd])), COMPARE)
    return odd


async def _explain(link: Link, what: str, text: str, odd: int, parent: int, children: tuple[int, ...]) -> str:
    if link.rank == odd:
        link.post(0, (_written(text),), EVIDENCE)
    if link.rank == 0:
        theirs = _read((await link.recv(odd, EVIDENCE)).payload[0])
        report = _written(f"{what}: agent {odd} differs from agent 0 {_difference(text, theirs)}")
    else:
        report = (await link.recv(parent, REPORT)).payload[0]
    for child in children:
        link.post(child, (report,), REPORT)
    return _read(report)


def _difference(ours: str, theirs: str) -> str:
    pairs = zip_longest(ours.splitlines(), theirs.splitlines(), fillvalue="(nothing)")
    for number, (a, b) in enumerate(pairs, 1):
        if a != b:
            return f"in line {number}: agent 0 has {a[:200]!r}, it has {b[:200]!r}; give all agents the same"
    return "in line ends only; give all agents the same"


def _written(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _read(raw: Tensor) -> str:
    return bytes(raw.tolist()).decode(errors="replace")
