"""Questions to another agent's server, and their answers: numbered, so that each is answered once and none is lost.

A server waits for nobody but for whoever asks, and answers at once: so two agents may ask each other, or any number in
a circle, and all are answered. ``mix`` and ``serve`` of all agents share one link, by the tags here.
"""

from __future__ import annotations

from typing import Final

import torch

from stretto.core import ANY, Link, Message, Payload
from stretto.errors import ProtocolError

ASK: Final = 0
ANSWER: Final = 1


async def ask(link: Link, peer: int, payload: Payload, asked: dict[int, int]) -> Payload:
    """What ``peer`` answers. ``asked`` counts what was asked of each.

    Raises:
        PeerLost: it is gone.
        ProtocolError: it answers another question.
    """
    number = asked[peer] = asked.get(peer, 0) + 1
    arrival = link.recv(peer, ANSWER)
    link.post(peer, (torch.tensor([number]), *payload), ASK)
    found, answer = _read(await arrival)
    _expect(link, peer, "answers", found, number)
    return answer


async def listen(link: Link, answered: dict[int, int]) -> tuple[int, Payload]:
    """Who asks next, and what. ``answered`` counts the questions of each.

    Raises:
        PeerLost: nobody is left who could ask.
        ProtocolError: a question came twice, or was left out.
    """
    message = await link.recv(ANY, ASK)
    found, payload = _read(message)
    _expect(link, message.src, "asks", found, answered.get(message.src, 0) + 1)
    answered[message.src] = found
    return message.src, payload


def reply(link: Link, peer: int, payload: Payload, answered: dict[int, int]) -> None:
    """Answer the last question of ``peer``."""
    link.post(peer, (torch.tensor([answered[peer]]), *payload), ANSWER)


def _read(message: Message) -> tuple[int, Payload]:
    head = message.payload[0] if message.payload else None
    if head is None or head.dtype != torch.int64 or head.numel() != 1:
        raise ProtocolError(f"agent {message.src} sent no number: do all agents run the same version and strategy?")
    return int(head), message.payload[1:]


def _expect(link: Link, peer: int, does: str, found: int, number: int) -> None:
    if found != number:
        raise ProtocolError(
            f"agent {peer} {does} number {found} and agent {link.rank} awaits {number}; this is a bug, please report it"
        )
