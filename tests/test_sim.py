"""The simulated world: right in time, deterministic, and never silent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stretto.core import ANY, Link
from stretto.errors import PeerLost, ProtocolError, StrettoError, UsageError
from stretto.sim import SimNetwork, Wire, World

KILO = torch.zeros(250)


async def one_message(link: Link) -> float:
    if link.rank == 0:
        link.post(1, (KILO,))
        await link.drain()
    else:
        await link.recv(0)
    return link.now()


def test_a_message_takes_its_bytes_and_its_delay() -> None:
    left, arrived = World(2, SimNetwork(delay=0.5, rate=1000)).run(one_message)
    assert (left, arrived) == (1.0, 1.5)


def test_messages_leave_one_after_the_other_and_drain_waits_for_the_last() -> None:
    async def three(link: Link) -> list[float]:
        times = []
        if link.rank == 0:
            for dst in (1, 2, 1):
                link.post(dst, (KILO,))
            await link.drain()
            times.append(link.now())
        for _ in range({0: 0, 1: 2, 2: 1}[link.rank]):
            await link.recv(0)
            times.append(link.now())
        return times

    assert World(3, SimNetwork(delay=0, rate=1000)).run(three) == [[3.0], [1.0, 3.0], [2.0]]


def test_a_receiver_is_shared_by_its_senders() -> None:
    async def many_to_one(link: Link) -> float:
        if link.rank:
            link.post(0, (KILO,))
        else:
            for src in range(1, 4):
                await link.recv(src)
        return link.now()

    assert World(4, SimNetwork(delay=0, rate=1000)).run(many_to_one)[0] == 3.0


def test_a_slow_sender_does_not_hold_up_a_fast_one() -> None:
    async def two_to_one(link: Link) -> float:
        if link.rank:
            for _ in range(4):
                link.post(0, (KILO,))
            return 0.0
        for _ in range(4):
            await link.recv(1)
        at = link.now()
        for _ in range(4):
            await link.recv(2)
        return at

    network = SimNetwork(delay=0, rate=1000, up={2: 10})
    world = World(3, network)
    assert world.run(two_to_one)[0] <= 5.0
    assert world.now == 400.0


def test_one_wire_may_be_slower_and_farther_than_the_rest() -> None:
    network = SimNetwork(delay=0.5, rate=1000, wires={(0, 1): Wire(delay=2.0, rate=500)})
    assert World(2, network).run(one_message) == [1.0, 4.0]
    assert network.agreed().delay == 2.0 and network.agreed().rate == 500


def test_loss_and_jitter_cost_time_but_never_order_or_content() -> None:
    async def stream(link: Link) -> list[float]:
        if link.rank == 0:
            for i in range(200):
                link.post(1, (torch.tensor([float(i)]),))
            return []
        return [(await link.recv(0)).payload[0].item() for _ in range(200)]

    calm, rough = World(2), World(2, SimNetwork(jitter=1e-3, loss=0.2), seed=3)
    assert calm.run(stream)[1] == rough.run(stream)[1] == [float(i) for i in range(200)]
    assert rough.now > calm.now


async def gossip(link: Link) -> list[tuple[int, float]]:
    for i in range(20):
        link.post((link.rank + 1 + i % (link.size - 1)) % link.size, (torch.ones(100 * i),), tag=7)
    seen = []
    for _ in range(20):
        seen.append(((await link.recv(ANY, 7)).src, link.now()))
    return seen


def test_the_same_seed_gives_the_same_run_to_the_nanosecond() -> None:
    def run(seed: int) -> Any:
        return World(5, SimNetwork(jitter=1e-3, loss=0.05), seed=seed).run(gossip)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_any_takes_messages_in_the_order_of_their_arrival() -> None:
    async def race(link: Link) -> list[int]:
        if link.rank:
            await link.sleep((4 - link.rank) * 1.0)
            link.post(0, (KILO,), tag=1)
            return []
        first = [(await link.recv(ANY, 1)).src]
        await link.sleep(10)
        return first + [(await link.recv(ANY, 1)).src for _ in range(2)]

    assert World(4).run(race)[0] == [3, 2, 1]


def test_any_and_named_receives_share_a_tag() -> None:
    async def mixed(link: Link) -> list[int]:
        if link.rank:
            link.post(0, (torch.ones(link.rank),), tag=1)
            return []
        await link.sleep(1)
        first = (await link.recv(ANY, 1)).src
        other = 3 - first
        return [first, (await link.recv(other, 1)).src]

    assert sorted(World(3).run(mixed)[0]) == [1, 2]


def test_what_the_sender_writes_later_does_not_reach_the_receiver() -> None:
    async def overwrite(link: Link) -> float:
        x = torch.ones(4)
        if link.rank == 0:
            link.post(1, (x,), 0)
            link.post(1, (x,), 1)
            x.fill_(5)
            return 0
        into = torch.zeros(4)
        early = link.recv(0, 0, into)
        await early
        late = await link.recv(0, 1)
        return float(into.sum() + late.payload[0].sum())

    assert World(2).run(overwrite)[1] == 8


def test_a_receive_fills_the_tensor_that_waits_and_refuses_another_size() -> None:
    async def fill(link: Link, numel: int) -> bool:
        if link.rank == 0:
            link.post(1, (torch.ones(4),))
            return True
        into = torch.zeros(numel)
        message = await link.recv(0, into=into)
        return message.payload[0] is into and bool(into.all())

    assert World(2).run(lambda link: fill(link, 4)) == [True, True]
    with pytest.raises(ProtocolError, match="agent 0 sent 4 x"):
        World(2).run(lambda link: fill(link, 5))


def test_together_runs_side_by_side_and_keeps_order() -> None:
    async def nap(link: Link, seconds: float) -> float:
        await link.sleep(seconds)
        return seconds

    async def naps(link: Link) -> list[float]:
        nested = link.together(nap(link, 1))
        return [*await link.together(nap(link, 3), nap(link, 2)), *await nested, *await link.together()]

    world = World(1)
    assert world.run(naps) == [[3, 2, 1]]
    assert world.now == 4


def test_the_first_error_ends_the_others() -> None:
    ended = []

    async def forever(link: Link) -> None:
        try:
            await link.together(wait(link))
        finally:
            ended.append(link.rank)

    async def wait(link: Link) -> None:
        await link.recv(1 - link.rank, 99)

    async def fail(link: Link) -> None:
        await link.sleep(1)
        raise ValueError("no")

    async def both(link: Link) -> None:
        await link.together(forever(link), fail(link))

    with pytest.raises(ValueError, match="no"):
        World(2).run(both)
    assert sorted(ended) == [0, 1]


def test_a_deadlock_names_who_waits_for_whom() -> None:
    async def wait(link: Link) -> None:
        await link.recv(1 - link.rank, tag=5)

    with pytest.raises(StrettoError, match=r"agent 0 waits for agent 1 \(tag 5\); agent 1 waits for agent 0"):
        World(2).run(wait)


def test_those_who_wait_learn_of_a_death_after_the_detection_delay() -> None:
    async def wait(link: Link) -> tuple[float, str]:
        try:
            await link.recv(2 if link.rank < 2 else 0, tag=3)
        except PeerLost as lost:
            return link.now(), f"{lost.peer}: {lost}"
        return 0.0, ""

    world = World(3, detection=0.25)
    world.kill(2, at=1.0)
    ends = world.run(wait)
    assert ends[2] is None
    assert ends[0][0] == ends[1][0] == 1.25
    assert "2: agent 0 waited for agent 2 (tag 3)" in ends[0][1]


def test_what_was_under_way_at_a_death_still_arrives_and_what_was_not_does_not() -> None:
    async def talk(link: Link) -> int:
        if link.rank == 0:
            for _ in range(5):
                link.post(1, (KILO,))
            await link.sleep(100)
        got = 0
        try:
            for _ in range(5):
                await link.recv(0)
                got += 1
        except PeerLost:
            with pytest.raises(PeerLost):
                await link.recv(0)
        return got

    for script in ({"at": 1.5}, {"after_messages": 2}):
        world = World(2, SimNetwork(delay=10, rate=1000))
        world.kill(0, **script)
        assert world.run(talk) == [None, 2]


def test_one_that_waits_for_anyone_is_told_when_all_are_gone() -> None:
    async def serve(link: Link) -> int:
        if link.rank:
            link.post(0, (KILO,))
            await link.sleep(100)
        got = 0
        try:
            while True:
                await link.recv(ANY)
                got += 1
        except PeerLost:
            return got

    world = World(3)
    world.kill(1, at=1.0)
    world.kill(2, at=2.0)
    assert world.run(serve)[0] == 2


def test_the_dead_stay_dead_and_the_clock_goes_on() -> None:
    async def idle(link: Link) -> float:
        await link.sleep(1)
        return link.now()

    world = World(2)
    world.kill(1, at=0.5)
    assert world.run(idle) == [1.0, None]
    assert world.run(idle) == [2.0, None]


def test_an_agent_that_fails_ends_those_who_wait_for_it() -> None:
    async def fail(link: Link) -> None:
        if link.rank == 0:
            raise ValueError("broken")
        await link.recv(link.rank - 1)

    first, *others = World(4).run(fail, keep_errors=True)
    assert isinstance(first, ValueError)
    assert all(isinstance(e, PeerLost) and e.peer == 0 for e in others)
    with pytest.raises(ValueError, match="broken"):
        World(4).run(fail)


def test_traffic_is_counted_by_pair() -> None:
    world = World(3)

    async def talk(link: Link) -> None:
        link.post((link.rank + 1) % 3, (KILO, KILO))
        await link.recv((link.rank - 1) % 3)

    world.run(talk)
    assert world.messages == [1, 1, 1] and world.bytes == [2000] * 3
    assert world.traffic() == {(0, 1): (1, 2000), (1, 2): (1, 2000), (2, 0): (1, 2000)}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: World(0),
        lambda: World(2, hosts=(0,)),
        lambda: World(2).kill(0),
        lambda: SimNetwork(rate=0),
        lambda: Wire(loss=1.0),
        lambda: World(2).run(post_to_oneself),
    ],
)
def test_what_makes_no_world_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError):
        wrong()


async def post_to_oneself(link: Link) -> None:
    link.post(link.rank, (KILO,))
