"""The promises of the design that hold so far, on real processes; docs/promises.md says which test keeps which."""

from __future__ import annotations

import ast
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import trainings
from contracts.parts import graphs
from networks import in_a_network_of_its_own
from processes import agents

import stretto
from stretto import workloads
from stretto.agent import Agent
from stretto.codecs import Int8
from stretto.core import Like, Member, Strategy
from stretto.errors import NetworkError, NonFinite, UsageError
from stretto.links import connect
from stretto.links.connect import Switchboard, listen_tcp
from stretto.links.handshake import ANYONE, Claim, Handshake, Purpose, prove
from stretto.links.loop import Loop
from stretto.links.tls import make_certificate
from stretto.simulate import coded
from stretto.workloads.train import train as learn

pytestmark = pytest.mark.network
every_link = pytest.mark.parametrize("link", ["tcp", "shm", "c10d"])
WIDE = 200
"""A width whose gradients are large messages: more than a slot of shared memory."""


def train(size: int, strategy: str, link: str, *, epochs: int = 1, width: int = 32) -> list[dict[str, Any]]:
    return agents(size, trainings.real, strategy, epochs, width, link=link)


def strategies(link: str) -> list[str]:
    """Every topology; on shared memory also what it does itself."""
    along = [f"allreduce(topology={t})" for t in graphs()]
    return [*along, "allreduce(topology=native)"] if link == "shm" else along


# 1. Right


@pytest.mark.parametrize(("link", "strategy"), [(k, s) for k in ("tcp", "shm") for s in strategies(k)])
def test_n_agents_equal_one_process_on_the_whole_batch(link: str, strategy: str) -> None:
    for size in (2, 3):
        lives = train(size, strategy, link)
        expected = torch.tensor(trainings.alone(size, 1, 32))
        for life in lives:
            assert life["digests"] == lives[0]["digests"]
            difference = (torch.tensor(life["weights"]) - expected).abs().max() / expected.abs().max()
            assert difference <= 1e-6


@every_link
def test_all_agents_have_the_same_digest_at_every_step_of_a_longer_run(link: str) -> None:
    lives = train(4, "allreduce", link, epochs=4, width=WIDE)
    first = lives[0]["digests"]
    assert len(set(first)) == len(first) > 16
    assert all(life["digests"] == first for life in lives)
    assert len({life["agent"] for life in lives}) == 1


def learns_digits(agent: Agent) -> float:
    return learn(agent, workloads.get("digits"), "mlp", strategy="allreduce", epochs=4, seed=0).accuracy


def test_four_agents_learn_digits_as_well_as_one_process() -> None:
    """One seed of what benchmarks/accuracy.py measures with five, for three models."""
    with stretto.join(environ={}) as agent:
        alone = learns_digits(agent)
    together = agents(4, learns_digits)
    assert set(together) == {together[0]}
    assert alone > 0.85 and abs(together[0] - alone) <= 0.005


# 2. Real = simulated


@pytest.mark.parametrize("topology", [t for t in graphs() if str(t) != "auto"], ids=str)
@pytest.mark.parametrize("width", [32, WIDE])
def test_real_processes_give_the_simulators_weights_bit_for_bit(topology: Any, width: int) -> None:
    """(``auto`` chooses by what the network was measured to be, so it may choose otherwise in a simulated one.)"""
    strategy = f"allreduce(topology={topology})"
    real = train(3, strategy, "tcp", width=width)
    assert [life["digests"] for life in real] == trainings.simulated(3, strategy, 1, width)


@pytest.mark.parametrize("strategy", coded(), ids=str)
def test_with_every_codec_real_processes_give_the_simulators_weights_bit_for_bit(strategy: Strategy) -> None:
    ring = f"allreduce(topology=ring, codec={strategy.codec})"
    real = train(3, ring, "tcp", width=WIDE)
    assert [life["digests"] for life in real] == trainings.simulated(3, ring, 1, WIDE)


@pytest.mark.parametrize("width", [32, WIDE])
@pytest.mark.parametrize("size", [2, 4])
def test_shared_memory_gives_the_simulators_native_weights_bit_for_bit(size: int, width: int) -> None:
    real = train(size, "allreduce(topology=native)", "shm", width=width)
    assert [life["digests"] for life in real] == trainings.simulated(
        size, "allreduce(topology=native)", 1, width, native=True
    )


# 7. Loud


def asks_native(agent: Agent) -> None:
    agent.prepare(torch.nn.Linear(2, 2), strategy="allreduce(topology=native)")


def asks_nonsense(agent: Agent) -> None:
    agent.prepare(torch.nn.Linear(2, 2), strategy="allreduce(topology=rink)")


def test_what_a_link_cannot_do_is_refused_and_not_replaced() -> None:
    ends = agents(2, asks_native, link="tcp", keep_errors=True)
    assert all(isinstance(e, UsageError) and "use link shm" in str(e) for e in ends)


def makes_a_nan(agent: Agent) -> None:
    net = agent.prepare(torch.nn.Linear(20, 20), strategy="allreduce(codec=int8)")
    for step in range(1, 4):
        worse = float("nan") if step == 3 and agent.rank == 1 else 1.0
        (worse * net(torch.ones(1, 20))).sum().backward()


def test_what_is_not_finite_ends_its_agent_naming_the_parameter_and_the_step() -> None:
    end = agents(2, makes_a_nan, keep_errors=True)[1]
    assert isinstance(end, NonFinite)
    assert str(end).startswith("step 3: the gradient of bias holds nan (element 0), which int8 cannot send: look for")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    ends = agents(2, asks_nonsense, keep_errors=True)
    assert all(isinstance(e, UsageError) and "ring" in str(e) for e in ends)


def test_an_unknown_link_is_refused_before_anybody_waits() -> None:
    with pytest.raises(UsageError, match="tcp"):
        stretto.join(link="tpc", environ={})


# 8. Closed


class Open:
    """An agent's switchboard on a port, in the middle of a run; who was let in."""

    def __init__(self, secret: str) -> None:
        self.let_in: list[int] = []
        self.loop = Loop()
        self.listener = listen_tcp("127.0.0.1")
        self.address = self.listener.getsockname()[:2]
        members = tuple(Member(r, "here", os.getpid(), ()) for r in range(2))
        self.board = Switchboard(
            self.loop,
            members[0],
            members,
            secret,
            make_certificate(),
            unix=False,
            adopt=self._adopt,
            lose=lambda peer, why: None,
        )
        self.board.answer(self.listener)

    def _adopt(self, peer: int, sock: socket.socket) -> None:
        self.let_in.append(peer)
        sock.close()

    def answers(self, stranger: Callable[[socket.socket], None]) -> bytes:
        """All bytes that a stranger hears until it is shown out."""

        async def moment() -> None:
            await self.loop.sleep(0.01)

        with socket.create_connection(self.address) as sock:
            stranger(sock)
            sock.setblocking(False)
            heard = b""
            while True:
                self.loop.run(moment())
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    data = sock.recv(65536)
                    if not data:
                        return heard
                    heard += data
                    continue
                if self.board._strangers._value == connect._MOST_STRANGERS:
                    return heard

    def close(self) -> None:
        self.board.close()
        self.loop.close()
        self.listener.close()


@pytest.fixture
def door() -> Any:
    opened = Open("the right secret")
    yield opened
    opened.close()


def hello(secret: str) -> bytes:
    return Handshake(secret, Claim(Purpose.LINK, 0, 2, 1), dials=True).opening()


STRANGERS = {
    "another secret": hello("a wrong secret"),
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "a frame": bytes([1, 1, 10, 0]) + bytes(30),
    "noise": bytes(range(256)) * 64,
}


@pytest.mark.parametrize("words", STRANGERS.values(), ids=list(STRANGERS))
def test_a_stranger_at_a_link_port_gets_in_nowhere_and_learns_nothing(door: Open, words: bytes) -> None:
    def knock(sock: socket.socket) -> None:
        sock.settimeout(5)
        with contextlib.suppress(OSError):
            sock.sendall(words)
            sock.shutdown(socket.SHUT_WR)

    heard = door.answers(knock)
    assert door.let_in == []
    assert len(heard) < 256 and b"secret" not in heard


def test_a_stranger_with_another_secret_does_not_disturb_a_run() -> None:
    """While agents train, strangers knock on every port that they announced."""

    def trains_while_others_knock(agent: Agent) -> dict[str, Any]:
        for member in agent.epoch.members:
            for address in member.addresses:
                if address.startswith("127."):
                    host, port = address.rsplit(":", 1)
                    with socket.create_connection((host, int(port))) as sock:
                        sock.settimeout(5)
                        with pytest.raises(NetworkError):
                            prove(sock, Handshake("wrong", Claim(Purpose.LINK, 1, 1, ANYONE), dials=True))
        return trainings.real(agent, "allreduce", 1, 32)

    lives = agents(2, trains_while_others_knock)
    assert lives[0]["digests"] == lives[1]["digests"]


def test_nothing_plain_is_said_to_another_machine(door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes from elsewhere must speak TLS: even the right secret is not heard in the clear."""
    monkeypatch.setattr(connect, "is_here", lambda host: False)
    heard = door.answers(lambda sock: sock.sendall(hello("the right secret")))
    assert door.let_in == [] and b"STRETTO" not in heard


def test_no_file_imports_pickle_or_what_unpickles() -> None:
    banned = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    root = Path(stretto.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
            elif isinstance(node, ast.Attribute):
                names = [f"{node.value.id}.{node.attr}"] if isinstance(node.value, ast.Name) else []
                assert names != ["torch.load"], f"{path} calls torch.load, which unpickles"
            assert not banned & {part for name in names for part in name.split(".")}, f"{path} imports {names}"


# 9. Counted


def sends_much(agent: Agent) -> tuple[int, int, int]:
    """(wire_sent, wire_received, what the interface counted) over some steps; all agents begin and end together."""
    net = agent.prepare(torch.nn.Linear(700, 700))

    def counters() -> tuple[int, int, int]:
        agent.mean(0.0)
        report = agent.report()
        return report.wire_sent, report.wire_received, psutil.net_io_counters(pernic=True)["lo"].bytes_sent

    before = counters()
    for _ in range(10):
        net(torch.ones(1, 700)).sum().backward()
    after = counters()
    agent.mean(0.0)
    sent, received, interface = (b - a for a, b in zip(before, after, strict=True))
    return sent, received, interface


def codes(agent: Agent) -> tuple[float, int, int]:
    net = agent.prepare(torch.nn.Linear(300, 300), strategy="allreduce(topology=ring, codec=int8)")
    for _ in range(3):
        net(torch.ones(1, 300)).sum().backward()
    report = agent.report()
    return report.codec_cpu, report.dense, report.coded


def test_what_codecs_cost_and_save_is_in_the_report() -> None:
    """Three steps; in each an agent encodes its gradient, and the mean of the third of it that it owns."""
    for cpu, before, after in agents(3, codes):
        assert cpu > 0 and before == 3 * 4 * (90_300 + 30_100)
        assert after == 3 * (3 + 1) * Int8().size(Like((30_100,), torch.float32))


def test_bytes_on_the_wire_are_what_the_interface_counts() -> None:
    counts = in_a_network_of_its_own(lambda: agents(3, sends_much))
    sent, received = sum(c[0] for c in counts), sum(c[1] for c in counts)
    interface = sum(c[2] for c in counts) / len(counts)
    assert interface > 10_000_000
    assert abs(sent - interface) <= 0.02 * interface
    assert abs(received - interface) <= 0.02 * interface
