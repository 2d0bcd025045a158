"""The simulated storm: what it is made of, that it replays, and that it finds what it is looking for."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import stretto.strategies  # noqa: F401  registers their names
from stretto.cli import stretto as command
from stretto.core import Epoch, Member, Strategy
from stretto.errors import PeerLost, StrettoError, UnknownName, UsageError
from stretto.ledger import Ledger, deal
from stretto.session import session
from stretto.session.rounds import Parts
from stretto.simulate import MIXES, Broken, Setting, examine, faults, listed, play, schedule, storm, trace
from stretto.simulate.clock import Clock
from stretto.simulate.faults import Fault
from stretto.simulate.lines import Line, Network
from stretto.simulate.port import Port
from stretto.simulate.task import Job, Part, Record, job, samples
from stretto.text import parse

RING: Strategy = parse("allreduce(topology=ring)", "strategy")
LOCAL: Strategy = parse("local_sgd(3)", "strategy")


@dataclass(eq=False)
class Process:
    uid: int
    alive: bool = True
    stopped_until: float = 0.0


@dataclass
class Listening:
    """What came out of lines: (at, item), and who was told of an end."""

    clock: Clock
    items: list[tuple[int, Any]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def heard(self, line: Line, at: Process, item: Any) -> None:
        self.items.append((at.uid, item))
        self.times.append(self.clock.now)

    def ended(self, line: Line, at: Process) -> None:
        self.ends.append(at.uid)


def connected(seed: int = 0) -> tuple[Clock, Network, Listening, Line]:
    clock = Clock()
    net = Network(clock, random.Random(seed), 0.05)
    ear = Listening(clock)
    return clock, net, ear, Line(net, ear, Process(1), Process(2))


# Time and connections


def test_what_is_due_at_a_stopped_process_waits_in_its_order() -> None:
    clock, process, found = Clock(), Process(1), []
    for number in range(5):
        clock.at(1.0, process, lambda number=number: found.append((number, clock.now)))
    process.stopped_until = 3.0
    clock.run(10.0)
    assert found == [(number, 3.0) for number in range(5)]


def test_nothing_happens_at_the_dead() -> None:
    clock, process, found = Clock(), Process(1), []
    clock.at(1.0, process, lambda: found.append(clock.now))
    process.alive = False
    clock.run(10.0)
    assert not found


@pytest.mark.parametrize("seed", range(20))
def test_a_line_keeps_the_order_of_what_is_said_through_a_cut(seed: int) -> None:
    clock, net, ear, line = connected(seed)
    for number in range(20):
        clock.at(number * 0.01, None, lambda number=number: line.say(1, number))
    clock.at(0.1, None, lambda: net.cut({1}, 1.0, lambda line: None))
    clock.run(5.0)
    assert ear.items == [(2, number) for number in range(20)]
    assert not any(0.1 < time < 1.1 for time in ear.times)


def test_who_closes_is_heard_to_the_end() -> None:
    clock, _, ear, line = connected()
    line.say(1, "last words")
    line.close(1)
    clock.run(5.0)
    assert ear.items == [(2, "last words")] and ear.ends == [2]


def test_the_dead_may_take_their_last_words_along_and_are_noticed() -> None:
    clock, _, ear, line = connected()
    line.say(1, "first")
    line.say(1, "lost")
    line.break_off(1, keep=1)
    clock.run(5.0)
    assert ear.items == [(2, "first")] and ear.ends == [2]


def test_a_line_that_snaps_loses_what_is_under_way_and_both_ends_notice() -> None:
    clock, _, ear, line = connected()
    line.say(1, "lost")
    line.snap()
    line.say(2, "lost, too")
    clock.run(5.0)
    assert not ear.items and sorted(ear.ends) == [1, 2]


# The data plane


class Pair:
    """Two ports with a line between them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.net = Network(self.clock, random.Random(0), 0.01)
        self.lost: list[int] = []
        self.processes = {uid: Process(uid) for uid in (1, 2)}
        self.ports = {uid: Port(p, self, False, self.lose) for uid, p in self.processes.items()}
        self.line: Line | None = None

    def lose(self, uid: int, why: str) -> None:
        self.lost.append(uid)

    def enter(self, number: int, *uids: int) -> None:
        epoch = Epoch(number, tuple(Member(rank, "here", 0, (), uid) for rank, uid in enumerate((1, 2))))
        for uid in uids:
            self.ports[uid].enter(epoch, uid - 1)

    def dial(self, uid: int, peer: int) -> Line:
        if self.line is None:
            self.line = Line(self.net, self, self.processes[1], self.processes[2])
        return self.line

    def sent(self, uid: int, nbytes: int) -> None: ...

    def heard(self, line: Line, at: Process, item: Any) -> None:
        self.ports[at.uid].heard(line, 3 - at.uid, item)

    def ended(self, line: Line, at: Process) -> None:
        self.ports[at.uid].ended(line, 3 - at.uid, "it ended")

    def got(self, uid: int, exchange: int) -> Tensor | None:
        receipt: Any = self.ports[uid].link(exchange).recv(2 - uid)
        return receipt.value.payload[0] if receipt.done else None


def test_what_comes_for_an_epoch_that_is_over_is_dropped_and_what_comes_early_waits() -> None:
    pair = Pair()
    pair.enter(1, 1, 2)
    pair.ports[1].link(7).post(1, (torch.tensor([1.0]),))
    pair.enter(2, 2)
    pair.clock.run(1.0)
    pair.enter(3, 1)
    pair.ports[1].link(7).post(1, (torch.tensor([3.0]),))
    pair.clock.run(2.0)
    assert pair.got(2, 7) is None
    pair.enter(3, 2)
    assert pair.got(2, 7) == torch.tensor([3.0])


def test_who_waits_for_one_that_is_lost_is_told_and_so_is_the_membership_once() -> None:
    pair = Pair()
    pair.enter(1, 1, 2)
    receipts: list[Any] = [pair.ports[1].link(exchange).recv(1) for exchange in (7, 8)]
    pair.dial(1, 2).close(2)
    pair.clock.run(1.0)
    assert all(isinstance(receipt.error, PeerLost) for receipt in receipts) and pair.lost == [2]


# The record


def first_batch(work: Job) -> tuple[Part, ...]:
    """Of two agents."""
    first = deal(Ledger.begin(work.samples, shuffle=False), (1, 1), work.batch_size)
    return tuple(Part(rank + 1, 0, first.part(0, rank), first.share(0, rank)) for rank in range(2))


def test_the_record_finds_a_sample_that_was_trained_twice_and_one_that_was_not() -> None:
    work = job(random.Random(0))
    record = Record(work)
    weights = torch.zeros(sum(work.sizes), dtype=torch.float64)
    place = record.begin(weights)
    once = record.commit(place, first_batch(work), (1, 2), weights, weights)
    twice = record.commit(once, first_batch(work), (1, 2), weights, weights)
    with pytest.raises(Broken, match="sample 0 was trained 2 times in epoch 0"):
        record.check_samples(twice)
    with pytest.raises(Broken, match="was trained 0 times"):
        record.check_samples(once)


@pytest.mark.parametrize("strategy", [RING, LOCAL], ids=str)
def test_the_record_finds_weights_that_one_process_would_not_have(strategy: Strategy) -> None:
    work = job(random.Random(0))
    record = Record(work)
    weights = torch.ones(sum(work.sizes), dtype=torch.float64)
    place = record.begin(weights)
    assert record.replay(record.commit(place, first_batch(work), (1, 2), weights, weights), strategy) > 1e-3


def test_the_record_trains_every_ones_window_from_the_same_weights() -> None:
    work = job(random.Random(0))
    record = Record(work)
    weights = torch.ones(sum(work.sizes), dtype=torch.float64)
    place = record.begin(weights)
    parts = first_batch(work)
    ends = [weights - 0.1 * part.share * work.gradient(weights, samples(part.ranges)) for part in parts]
    mean = torch.stack(ends).mean(0)
    assert record.replay(record.commit(place, parts, (1, 2), mean, torch.zeros_like(mean)), LOCAL) < 1e-15


# The storm


@pytest.mark.parametrize("mix", MIXES)
def test_a_seed_is_a_schedule(mix: str) -> None:
    assert [schedule(seed, Setting(mix)) for seed in range(50)] == [schedule(seed, Setting(mix)) for seed in range(50)]
    kinds = {fault.kind for seed in range(300) for fault in schedule(seed, Setting(mix))[1]}
    assert kinds == set(MIXES[mix])


def test_a_run_replays_event_by_event() -> None:
    size, struck = schedule(3, Setting("storm"))
    once: list[str] = []
    again: list[str] = []
    play(3, RING, size, struck, once.append)
    play(3, RING, size, struck, again.append)
    assert once == again and len(once) > 50


def test_the_same_runs_come_of_one_process_and_of_two() -> None:
    seeds = range(30)
    alone, two = (sorted(storm([RING], seeds, Setting("deaths"), jobs), key=repr) for jobs in (1, 2))
    assert alone == two and sum(tally.runs for tally in alone) == 30


def test_an_unknown_mix_is_told() -> None:
    with pytest.raises(UnknownName):
        faults.draw(random.Random(0), "weather", 3, 4.0)


def test_a_session_that_shares_nothing_is_found_out_with_its_fewest_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator would see it if, after a death, everybody did the open round again, done or not."""
    monkeypatch.setattr(session, "settle", lambda view: None)
    tally = examine(range(1, 5), RING, Setting("deaths", 3, 4))
    assert tally.breaks
    assert min(len(found.faults) for found in tally.breaks) == 1


@pytest.mark.parametrize("strategy", [RING, LOCAL], ids=str)
def test_weights_that_nobody_healed_are_found_out(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    everybody = lambda view, number: Parts(tuple(seat.uid for seat in view.seats), len(view.seats))  # noqa: E731
    monkeypatch.setattr(session.views, "parts", everybody)
    tally = examine(range(1, 5), strategy, Setting("deaths", 3, 4))
    assert any("from those of one process" in found.why for found in tally.breaks)


def test_who_is_healed_in_the_moment_in_which_its_only_donor_dies_has_the_model() -> None:
    """It had frozen, and reported that it is not healed, an instant before."""
    struck = [Fault(0.188, "fall", (0,), pieces=1), Fault(0.4, "restart", (0,)), Fault(0.5078, "kill", (1,))]
    assert play(22, parse("diloco(2)", "strategy"), 2, struck).outcome == "ended"


def test_who_comes_in_with_the_last_agreement_ends_as_the_others_do() -> None:
    """By its own count it was not the last; and an elastic would have left it with weights of its own."""
    struck = [
        Fault(0.261, "kill", (4,)),
        Fault(1.076, "suspect", (3, 2)),
        Fault(3.7663, "stop", (1,), 4.5137),
        Fault(3.8522, "stop", (-1,), 3.1279),
    ]
    assert play(254, parse("easgd(2)", "strategy"), 5, struck).outcome == "ended"


def test_a_trace_tells_every_event() -> None:
    lines: list[str] = []
    assert trace(3, RING, Setting("storm"), lines.append) is None
    assert any("commit" in line for line in lines)


# The command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(command, ["simulate", *arguments])


def test_the_command_tells_what_became_of_every_strategy(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    done = run("--seeds", "2", "--jobs", "1", "--faults", "cuts", "--json", str(path))
    assert done.exit_code == 0, done.output
    found = msgspec.json.decode(path.read_bytes())
    assert [row["strategy"] for row in found["rows"]] == sorted(str(strategy) for strategy in listed())
    assert {row["runs"] for row in found["rows"]} == {2} and found["runs"] == 2 * len(listed())


def test_the_command_plays_one_run_event_by_event() -> None:
    done = run("--strategy", "allreduce(topology=ring)", "--seed", "3", "--trace")
    assert done.exit_code == 0 and "all promises were kept" in done.output


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--faults", "weather"), UnknownName),
        (("--agents", "many"), UsageError),
        (("--agents", "5..3"), UsageError),
        (("--seeds", "0"), UsageError),
        (("--trace",), UsageError),
    ],
)
def test_what_cannot_be_simulated_is_told(arguments: tuple[str, ...], error: type[StrettoError]) -> None:
    assert isinstance(run(*arguments).exception, error)


def test_a_broken_promise_fails_the_command_and_names_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "settle", lambda view: None)
    done = run(
        "--strategy",
        "allreduce(topology=ring)",
        "--faults",
        "deaths",
        "--seeds",
        "5",
        "--agents",
        "3..4",
        "--jobs",
        "1",
    )
    assert isinstance(done.exception, StrettoError) and done.exception.exit_code == 1
    assert "--trace" in str(done.exception)
