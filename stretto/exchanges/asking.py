"""Questions to another agent's server, and their answers: numbered, so that none is taken for another's.

A server waits for nobody but for whoever asks, and answers at once: so two agents may ask each other, or any number in
a circle, and all are answered. ``mix`` and ``serve`` of all agents share one link, by the tags here.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    if found != number:
        raise ProtocolError(
            f"agent {peer} answers question {found} of agent {link.rank}, which awaits {number}; this is a bug, please "
            "report it"
        )
    return answer


@dataclass(frozen=True, slots=True)
class Question:
    """What ``asker`` asks, to be answered once."""

    asker: int
    number: int
    payload: Payload

    def answer(self, link: Link, payload: Payload, answered: dict[int, int]) -> None:
        """``answered`` counts what each was answered."""
        answered[self.asker] = answered.get(self.asker, 0) + 1
        link.post(self.asker, (torch.tensor([self.number]), *payload), ANSWER)


async def listen(link: Link) -> Question:
    """Whoever asks next.

    Raises:
        PeerLost: nobody is left who could ask.
        ProtocolError: that is no question.
    """
    message = await link.recv(ANY, ASK)
    return Question(message.src, *_read(message))


def _read(message: Message) -> tuple[int, Payload]:
    head = message.payload[0] if message.payload else None
    if head is None or head.dtype != torch.int64 or head.numel() != 1:
        raise ProtocolError(f"agent {message.src} sent no number: do all agents run the same version and strategy?")
    return int(head), message.payload[1:]
