"""What every link promises: the simulated one and each real one pass the same claims."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import KINDS, STREAMS, Lived, Make, raise_first, run, run_streams

from contracts.parts import all_codecs, graphs
from stretto.codecs import Identity
from stretto.core import ANY, Cell, Codec, Like, Link, Message, Named, Topology
from stretto.errors import PeerLost, ProtocolError
from stretto.exchanges import AllReduce
from stretto.exchanges.owners import parts_of
from stretto.links import channel
from stretto.links.channel import WINDOW
from stretto.topologies import Ring

every_kind = pytest.mark.parametrize("kind", KINDS)
every_stream = pytest.mark.parametrize("kind", STREAMS)
MB = 1 << 20
HEADER = 34
"""Bytes before those of a message of one vector: what docs/codecs.md says."""


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers)


def numbered(numel: int, seed: int) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


async def arrived(link: Link, src: int = ANY, tag: int = 0) -> list[float]:
    return (await link.recv(src, tag)).payload[0].tolist()


async def met(link: Link) -> None:
    """All are here, before anybody goes on."""
    for tag in (1000, 1001):
        for r in range(link.size):
            if r != link.rank:
                link.post(r, (torch.zeros(0),), tag)
        for r in range(link.size):
            if r != link.rank:
                await link.recv(r, tag)
    await link.drain()


class Gone(Exception):
    """An agent ends here."""


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


def bits(x: Tensor) -> list[int]:
    return x.contiguous().reshape(-1).view(torch.uint8).tolist() if x.numel() else []


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
def test_large_messages_both_ways_at_once_do_not_deadlock(kind: str) -> None:
    """Each side consumes in the reverse order of posting, and more than the window is under way."""
    count, numel = 6, 3 * MB // 4

    async def once(link: Link) -> bool:
        other = 1 - link.rank
        for i in range(count):
            link.post(other, (numbered(numel, 10 * link.rank + i),), i)
        right = True
        for i in reversed(range(count)):
            got = (await link.recv(other, i)).payload[0]
            right = right and torch.equal(got, numbered(numel, 10 * other + i))
        await link.drain()
        return right

    assert count * numel * 4 > 4 * WINDOW
    assert run(kind, 2, once) == [True, True]


@every_kind
def test_what_any_waits_for_may_be_behind_more_than_the_window(kind: str) -> None:
    async def once(link: Link) -> list[float]:
        if link.rank == 0:
            for _ in range(4):
                link.post(1, (torch.zeros(WINDOW // 4),), 1)
            link.post(1, (vector(5),), 2)
            await link.drain()
            return []
        last = await arrived(link, ANY, 2)
        for _ in range(4):
            await link.recv(ANY, 1)
        return last

    assert run(kind, 2, once)[1] == [5.0]


@every_kind
def test_receives_posted_ahead_into_tensors_stream_through(kind: str) -> None:
    async def once(link: Link) -> bool:
        left, right = (link.rank - 1) % link.size, (link.rank + 1) % link.size
        rooms = [torch.zeros(MB) for _ in range(3)]
        coming = [link.recv(left, i, room) for i, room in enumerate(rooms)]
        for i in range(3):
            link.post(right, (numbered(MB, 10 * link.rank + i),), i)
        for c in coming:
            await c
        await link.drain()
        return all(torch.equal(room, numbered(MB, 10 * left + i)) for i, room in enumerate(rooms))

    assert all(run(kind, 3, once))


@every_kind
def test_together_returns_in_order(kind: str) -> None:
    async def wait(link: Link, seconds: float) -> float:
        await link.sleep(seconds)
        return seconds

    async def once(link: Link) -> list[Any]:
        return await link.together(wait(link, 0.02), wait(link, 0.0), wait(link, 0.01))

    async def nothing(link: Link) -> list[Any]:
        return await link.together()

    assert run(kind, 2, once) == [[0.02, 0.0, 0.01]] * 2
    assert run(kind, 1, nothing) == [[]]


@every_kind
def test_the_first_error_of_together_ends_the_others(kind: str) -> None:
    ended: list[str] = []

    async def fail(link: Link) -> None:
        await link.sleep(0.001)
        raise Gone("first")

    async def wait(link: Link) -> None:
        try:
            await link.sleep(1000)
        finally:
            ended.append("closed")

    async def once(link: Link) -> str:
        with pytest.raises(Gone, match="first"):
            await link.together(wait(link), fail(link), wait(link))
        return "told"

    assert run(kind, 1, once) == ["told"]
    assert ended == ["closed", "closed"]


@every_kind
def test_after_drain_a_tensor_may_be_written_again(kind: str) -> None:
    async def once(link: Link) -> list[float]:
        if link.rank == 0:
            x = torch.empty(MB)
            for i in range(6):
                x.fill_(i)
                link.post(1, (x,), 0)
                await link.drain()
            return []
        await link.sleep(0.01)
        return [(await link.recv(0, 0)).payload[0].unique().tolist()[0] for _ in range(6)]

    assert run(kind, 2, once)[1] == [0, 1, 2, 3, 4, 5]


@every_kind
def test_two_coroutines_may_drain_at_once(kind: str) -> None:
    async def send(link: Link, tag: int) -> str:
        link.post(1, (torch.zeros(MB),), tag)
        await link.drain()
        return "drained"

    async def once(link: Link) -> list[Any]:
        if link.rank == 0:
            return await link.together(send(link, 1), send(link, 2))
        for tag in (2, 1):
            await link.recv(0, tag)
        return []

    assert run(kind, 2, once)[0] == ["drained", "drained"]


@every_kind
def test_when_a_peer_goes_those_who_wait_for_it_are_told_and_the_others_go_on(kind: str) -> None:
    async def once(link: Link) -> Any:
        others = [r for r in range(link.size) if r != link.rank]
        for r in others:
            link.post(r, (vector(link.rank),))
        for r in others:
            await link.recv(r)
        if link.rank == 2:
            raise Gone
        if link.rank == 0:
            try:
                await link.recv(2, 1)
            except PeerLost as e:
                link.post(1, (vector(e.peer),), 1)
                await link.drain()
                return "told"
        return await arrived(link, 0, 1)

    ends = run(kind, 3, once, keep_errors=True)
    assert ends[:2] == ["told", [2.0]] and isinstance(ends[2], Gone)


@every_kind
def test_what_a_peer_sent_before_it_went_still_arrives(kind: str) -> None:
    async def once(link: Link) -> Any:
        if link.rank == 0:
            link.post(1, (vector(1),), 1)
            link.post(1, (vector(2),), 2)
            await link.drain()
            await link.recv(1, 3)
            raise Gone
        await link.recv(0, 2)
        link.post(0, (vector(0),), 3)
        with pytest.raises(PeerLost):
            await link.recv(0, 9)
        return await arrived(link, 0, 1)

    assert run(kind, 2, once, keep_errors=True)[1] == [1.0]


@every_kind
def test_a_receive_that_is_half_filled_when_its_sender_goes_fails_too(kind: str) -> None:
    async def once(link: Link) -> Any:
        if link.rank == 0:
            link.post(1, (torch.zeros(16 * MB),), 1)
            await link.recv(1, 3)
            raise Gone
        coming = link.recv(0, 1, torch.zeros(16 * MB))
        other = link.recv(0, 2)
        link.post(0, (vector(0),), 3)
        try:
            await coming
        except PeerLost as e:
            return e.peer
        with pytest.raises(PeerLost):
            await other
        return 0

    assert run(kind, 2, once, keep_errors=True)[1] == 0


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


def reduced(kind: str, size: int, topology: Topology, numel: int) -> list[list[int]]:
    async def once(link: Link) -> list[int]:
        x = numbered(numel, link.rank)
        mean = await AllReduce(topology).mean(link, x, Identity(), Cell(Like.of(x)))
        return bits(mean)

    return run(kind, size, once)


@every_kind
@pytest.mark.parametrize("topology", graphs(), ids=str)
def test_every_topology_gives_the_simulators_bits(kind: str, topology: Topology) -> None:
    for size, numel in ((2, 1001), (3, 40_000), (5, 1001)):
        assert reduced(kind, size, topology, numel) == reduced("sim", size, topology, numel)


@every_stream
def test_exchanges_share_one_connection_and_are_told_apart(kind: str) -> None:
    """Five at once, each of more than the window; the receivers start with the one that was begun last."""
    numel, exchanges = 2 * MB, 5

    async def send(link: Any, number: int) -> None:
        channel = link.mesh.link(number)
        for i in range(2):
            channel.post(1 - link.rank, (numbered(numel, number + i),), 3)
        await channel.drain()

    async def receive(link: Any, number: int) -> bool:
        channel = link.mesh.link(number)
        got = [(await channel.recv(1 - link.rank, 3)).payload[0] for _ in range(2)]
        return all(torch.equal(x, numbered(numel, number + i)) for i, x in enumerate(got))

    async def take_all(link: Any) -> list[bool]:
        return [await receive(link, number) for number in reversed(range(100, 100 + exchanges))]

    async def once(link: Any) -> tuple[list[bool], int]:
        sends = [send(link, number) for number in range(100, 100 + exchanges)]
        *_, right = await link.together(*sends, take_all(link))
        connections = link.mesh.totals().connections
        await met(link)
        return right, connections

    lives = run_streams(kind, 2, once)
    raise_first(lives)
    assert [life.result for life in lives if isinstance(life, Lived)] == [([True] * exchanges, 1)] * 2


@every_stream
def test_one_who_does_not_take_holds_a_window_and_a_message_at_most(kind: str) -> None:
    message = 1 * MB

    async def once(link: Any) -> int:
        if link.rank == 0:
            for _ in range(40):
                link.post(1, (torch.zeros(message // 4),), 1)
            await link.recv(1, 2)
            await link.drain()
            return 0
        held = previous = -1
        while held != previous or held < WINDOW:
            previous = held
            await link.sleep(0.05)
            held = link.mesh.totals().received
        link.post(0, (vector(0),), 2)
        for _ in range(40):
            await link.recv(0, 1)
        return held

    lives = run_streams(kind, 2, once)
    raise_first(lives)
    framing = 64 * 40
    assert isinstance(lives[1], Lived)
    assert WINDOW <= lives[1].result <= WINDOW + message + framing


@every_stream
def test_bytes_are_counted_alike_at_both_ends(kind: str) -> None:
    async def once(link: Any) -> tuple[int, int, int]:
        other = 1 - link.rank
        link.post(other, (torch.zeros(100_000),), 1)
        await link.drain()
        await link.recv(other, 1)
        await met(link)
        totals = link.mesh.totals()
        return totals.sent, totals.received, totals.wire_received

    lives = run_streams(kind, 2, once)
    raise_first(lives)
    counts = [life.result for life in lives if isinstance(life, Lived)]
    for sent, received, on_wire in counts:
        frames, goodbye = 3 * 34, 24
        assert sent == 400_000 + frames
        assert received in (sent, sent + goodbye)
        assert on_wire == 0 if kind == "unix" else 400_000 < on_wire < 1.05 * 400_000


@pytest.mark.parametrize("seed", range(12))
def test_no_order_of_receives_runs_dry_of_credit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some messages are taken as they come and others later: neither alone fills the window, together they do."""
    monkeypatch.setattr(channel, "WINDOW", 1 << 16)
    draw = random.Random(seed)
    sizes = [draw.randrange(1 << 10, 1 << 14) for _ in range(60)]
    order = list(range(len(sizes)))
    draw.shuffle(order)
    ahead = draw.randrange(1, 12)

    async def once(link: Link) -> bool:
        other = 1 - link.rank
        for tag, size in enumerate(sizes):
            link.post(other, (torch.full((size,), tag, dtype=torch.uint8),), tag)
        posted: deque[Awaitable[Message]] = deque()
        right = True
        for place in range(len(order) + ahead):
            if place < len(order):
                tag = order[place]
                posted.append(link.recv(other, tag, torch.empty(sizes[tag], dtype=torch.uint8)))
            if place >= ahead:
                message = await posted.popleft()
                right = right and bool((message.payload[0] == order[place - ahead]).all())
        await link.drain()
        return right

    assert run("unix", 2, once) == [True, True]


@every_stream
@pytest.mark.parametrize("codec", [c for c in all_codecs() if c.exact and not c.summable], ids=str)
def test_a_coded_mean_takes_the_bytes_that_its_codec_says_and_a_header_a_message(kind: str, codec: Codec) -> None:
    """Along a ring each agent sends every other one its part, and then the mean of its own part."""
    like, size = Like((3001,), torch.float32, (Named("w", (3001,)),)), 3

    async def nothing(link: Link) -> None:
        await met(link)

    async def once(link: Link) -> None:
        await met(link)
        await AllReduce(Ring()).mean(link, numbered(3001, link.rank), codec, Cell(like))

    def sent(make: Make) -> list[int]:
        lives = run_streams(kind, size, make)
        raise_first(lives)
        return [life.totals.sent for life in lives if isinstance(life, Lived)]

    parts = [codec.size(like.part(p.start, p.stop, 0)) for p in parts_of(Ring(), (0,) * size, 3001)]
    for part, before, after in zip(parts, sent(nothing), sent(once), strict=True):
        assert after - before == (sum(parts) - part) + (size - 1) * part + 2 * (size - 1) * HEADER
