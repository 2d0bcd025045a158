"""What every link promises: the simulated one and each real one pass the same claims."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from worlds import run

from contracts.talking import MB, arrived, bits, every_kind, numbered, vector
from stretto.core import ANY, Link
from stretto.errors import ProtocolError


@every_kind
def test_messages_of_one_sender_and_tag_keep_their_order(kind: str) -> None:
    async def once(link: Link) -> list[list[float]]:
        if link.rank == 0:
            for i in range(100):
                link.post(1, (vector(i),), tag=i % 3)
            await link.drain()
            return []
        return [[(await arrived(link, 0, tag))[0] for _ in range(33)] for tag in (2, 0, 1)]

    received = run(kind, 2, once)[1]
    assert received == [[tag + 3.0 * i for i in range(33)] for tag in (2, 0, 1)]


@every_kind
def test_senders_are_told_apart(kind: str) -> None:
    async def once(link: Link) -> list[float]:
        if link.rank:
            link.post(0, (vector(10.0 * link.rank),), tag=5)
            await link.drain()
            return []
        return [(await arrived(link, src, 5))[0] for src in (3, 1, 2)]

    assert run(kind, 4, once)[0] == [30, 10, 20]


@every_kind
def test_any_takes_from_whoever_sends_and_says_who(kind: str) -> None:
    async def once(link: Link) -> list[tuple[int, float]]:
        if link.rank:
            link.post(0, (vector(10.0 * link.rank),), tag=5)
            link.post(0, (vector(-1.0),), tag=6)
            await link.drain()
            return []
        messages = [await link.recv(ANY, 5) for _ in range(3)]
        return sorted((m.src, m.payload[0].item()) for m in messages)

    assert run(kind, 4, once)[0] == [(1, 10), (2, 20), (3, 30)]


@every_kind
@pytest.mark.parametrize("early", [False, True], ids=["posted before", "posted after"])
@pytest.mark.parametrize("numel", [1, 1000, MB])
def test_a_receive_fills_the_tensor_it_names(kind: str, early: bool, numel: int) -> None:
    """Whether the message comes before or after the receive is posted."""

    async def once(link: Link) -> bool:
        sent = numbered(numel, 3)
        if link.rank == 0:
            if not early:
                await link.recv(1, 9)
            link.post(1, (sent,), 4)
            link.post(1, (vector(0),), 8)
            await link.drain()
            return True
        into = torch.zeros(numel)
        if early:
            await link.recv(0, 8)
            message = await link.recv(0, 4, into)
        else:
            coming = link.recv(0, 4, into)
            link.post(0, (vector(1),), 9)
            message = await coming
        return message.payload[0] is into and message.src == 0 and torch.equal(into, sent)

    assert run(kind, 2, once) == [True, True]


@every_kind
@pytest.mark.parametrize("early", [False, True], ids=["posted before", "posted after"])
@pytest.mark.parametrize(
    "sent",
    [(torch.zeros(3),), (torch.zeros(4, dtype=torch.float64),), (torch.zeros(4), torch.zeros(4)), ()],
    ids=["another size", "another dtype", "two tensors", "none"],
)
def test_what_does_not_fit_the_tensor_it_was_awaited_in_is_an_error_in_words(
    kind: str, early: bool, sent: tuple[Tensor, ...]
) -> None:
    async def once(link: Link) -> str:
        if link.rank == 0:
            if not early:
                await link.recv(1, 9)
            link.post(1, sent, 4)
            link.post(1, (vector(0),), 8)
            await link.drain()
            return ""
        if early:
            await link.recv(0, 8)
            coming = link.recv(0, 4, torch.zeros(4))
        else:
            coming = link.recv(0, 4, torch.zeros(4))
            link.post(0, (vector(1),), 9)
        with pytest.raises(ProtocolError) as told:
            await coming
        return str(told.value)

    words = run(kind, 2, once)[1]
    assert "agent 0 sent" in words and "float32" in words


def every_form() -> list[tuple[Tensor, ...]]:
    """Payloads of every dtype that travels, of odd shapes, with bits that arithmetic would change."""
    floats = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    odd = [torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 3.3]).to(d) for d in floats]
    return [
        *((x,) for x in odd),
        *((torch.tensor([0, 1, 100], dtype=d),) for d in integers),
        (torch.tensor([True, False, True]),),
        (torch.tensor(2.5),),
        (torch.tensor(7, dtype=torch.int64),),
        (torch.empty(0),),
        (torch.empty(0, 3, dtype=torch.int8),),
        (torch.arange(24.0).reshape(2, 3, 4),),
        (torch.arange(6.0).reshape(2, 3).T,),
        (torch.arange(10.0)[::2],),
        (torch.zeros(1, 1, 1, 1, 1, 1, 1, 1),),
        (),
        (torch.empty(0), torch.tensor(1.0), torch.arange(3), torch.tensor([True]), torch.ones(2, 2).bfloat16()),
        tuple(torch.tensor(i) for i in range(255)),
    ]


@every_kind
def test_every_dtype_and_shape_arrives_bit_for_bit(kind: str) -> None:
    async def once(link: Link) -> list[bool]:
        forms = every_form()
        if link.rank == 0:
            for i, payload in enumerate(forms):
                link.post(1, payload, i)
            await link.drain()
            return []
        same = []
        for i, payload in enumerate(forms):
            got = (await link.recv(0, i)).payload
            pairs = list(zip(got, payload, strict=True))
            same.append(all(a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b) for a, b in pairs))
        return same

    assert all(run(kind, 2, once)[1])


@every_kind
def test_rank_size_and_hosts_are_what_they_are(kind: str) -> None:
    async def once(link: Link) -> tuple[int, int, tuple[int, ...]]:
        return link.rank, link.size, link.hosts

    assert run(kind, 3, once) == [(rank, 3, (0, 0, 0)) for rank in range(3)]


@every_kind
def test_a_link_tells_time_and_sleeps(kind: str) -> None:
    async def once(link: Link) -> bool:
        begin = link.now()
        await link.sleep(0.01)
        return link.now() - begin >= 0.00999

    assert all(run(kind, 2, once))
