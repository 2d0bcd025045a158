"""Storms: the same seed gives the same faults, and what is told of them is what the traces say."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.errors import UsageError
from stretto.lab import Laboratory, faults, story
from stretto.lab.faults import Fault
from stretto.lab.fleet import Fleet
from stretto.lab.storm import play, to_the_end
from stretto.lab.story import Aftermath, Deed
from stretto.lab.summary import summaries
from stretto.lab.trial import Place, Weather

HOSTS = [(0,), (1,), (2,), (3,)]


def storm(seed: int = 0, **more: Any) -> tuple[Fault, ...]:
    return faults.storm(**{"seed": seed, "per_hour": 125, "seconds": 1200, "hosts": HOSTS} | more)


def test_a_seed_is_a_storm() -> None:
    assert storm(3) == storm(3)
    assert storm(3) != storm(4)


@given(st.integers(0, 1 << 40), st.floats(60, 3600), st.sampled_from([HOSTS, [(0, 1), (2, 3)], [(0,), (1,)]]))
def test_a_storm_has_its_rate_one_end_of_the_coordinator_and_never_hits_everybody(
    seed: int, per_hour: float, hosts: list[tuple[int, ...]]
) -> None:
    found = storm(seed, per_hour=per_hour, hosts=hosts)
    assert len(found) == round(per_hour / 3)
    assert [f.kind for f in found].count("coordinator") == 1
    agents = sum(len(host) for host in hosts)
    held = [(f.at, f.at + (f.seconds or faults.RETURN), f.labels) for f in found if f.kind != "coordinator"]
    for at, _, _ in held:
        down = [label for begin, end, labels in held if begin <= at < end for label in labels]
        assert len(down) == len(set(down)) < agents


def test_a_storm_of_one_kind_has_only_that() -> None:
    assert {f.kind for f in storm(mix={"cut": 1.0}, coordinator=False)} == {"cut"}


def test_regular_faults_are_evenly_spaced() -> None:
    found = storm(mix={"kill": 1.0}, coordinator=False, per_hour=240, seconds=60, regular=True)
    assert [f.at for f in found] == [0, 15, 30, 45]


@pytest.mark.parametrize("bad", [{"per_hour": -1}, {"seconds": 0}, {"hosts": [(0,)]}])
def test_a_storm_that_cannot_be_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        storm(**bad)


def test_the_time_of_a_trial_is_calm_storm_and_calm() -> None:
    weather = Weather(seconds=60, calm=10, after=20)
    assert weather.whole == 10 + 60 + weather.after
    assert weather.faults(Place(hosts=3).labels) == storm(seconds=60, hosts=HOSTS[:3])


def commit(
    time: float, number: int, view: int, contributors: str, *, agents: str = "", fence: bool = True
) -> list[Any]:
    """The same round at several agents, a moment apart; without ``agents`` at its contributors."""
    return [
        {
            "event": "commit",
            "agent": int(agent),
            "time": time + 0.001 * i,
            "round": number,
            "fence": fence,
            "view": view,
            "contributors": [int(c) for c in contributors],
        }
        for i, agent in enumerate(agents or contributors)
    ]


def view(time: float, number: int, labels: str) -> dict[str, Any]:
    return {
        "event": "view",
        "agent": 0,
        "time": time,
        "number": number,
        "labels": [int(c) for c in labels],
        "why": "so",
    }


def suspect(time: float, agent: int, peer: int, what: str = "silent") -> dict[str, Any]:
    return {"event": "suspect", "agent": agent, "time": time, "peer": peer, "what": what, "why": "no pulse"}


def kill(label: int, began: float, ended: float) -> Deed:
    return Deed(kind="kill", labels=(label,), began=began, ended=ended)


def a_kill() -> list[dict[str, Any]]:
    """Agent 2 of three is killed at 10 and back at 14: a round a second otherwise; round 10 was being shared."""
    events = [view(0, 1, "012"), view(10.3, 2, "01"), view(13.1, 3, "012")]
    events += [e for t in range(10) for e in commit(t + 0.5, t, 1, "012")]
    events += commit(9.9, 10, 1, "012", agents="0")
    events += [suspect(10.1, 0, 2, "closed")]
    events += commit(10.4, 10, 2, "012", agents="1") + commit(10.6, 11, 2, "01")
    events += commit(12.5, 12, 2, "01") + commit(13.5, 13, 3, "01", agents="012") + commit(14.0, 14, 3, "012")
    return sorted(events, key=lambda e: e["time"])


def test_after_a_kill_it_tells_when_the_others_went_on_and_the_victim_was_back() -> None:
    done = story.commits(a_kill())
    found = story.aftermath(kill(2, 10.0, 12.0), done, a_kill())
    assert found.next_commit == pytest.approx(0.4)
    assert found.back == pytest.approx(4.002)
    assert found.noticed == pytest.approx(0.1)


def test_a_victim_that_stays_away_is_never_back() -> None:
    events = [e for e in a_kill() if e["time"] < 13]
    found = story.aftermath(kill(2, 10.0, math.inf), story.commits(events), events)
    assert found.next_commit == pytest.approx(0.4)
    assert found.back is None
    assert summaries([found])[0].missing == {"next_commit": 0, "back": 1}


def test_what_was_finished_before_a_kill_is_no_next_step() -> None:
    events = [view(0, 1, "012"), *commit(9, 0, 1, "012"), *commit(10.05, 1, 1, "012", agents="01")]
    assert story.aftermath(kill(2, 10.0, 11.0), story.commits(events), events).next_commit is None


def a_kill_on_the_way_back() -> tuple[list[dict[str, Any]], list[Deed]]:
    """Agent 2 of three is killed at 10, and at 21, before it is back; at 25 it is: a round a second all the while."""
    events = [view(0, 1, "012"), view(10.3, 2, "01"), view(24.8, 3, "012")]
    for t in range(30):
        number, who = (1, "012") if t < 10 else (2, "01") if t < 25 else (3, "012")
        events += commit(t + 0.5, t, number, who)
    return events, [kill(2, 10.0, 12.0), kill(2, 21.0, 22.0)]


def test_nobody_waits_for_a_victim_that_is_killed_again_on_its_way_back() -> None:
    events, deeds = a_kill_on_the_way_back()
    first, second = story.tell(events, deeds, agents=3, calm=(0, 5), until=30).aftermaths
    assert first.next_commit == pytest.approx(0.5)
    assert second.next_commit == pytest.approx(0.5)


def test_a_newcomer_that_is_killed_as_it_enters_is_waited_for() -> None:
    events = [view(10.3, 2, "01"), view(20.9, 3, "012"), *commit(21.1, 20, 3, "01"), *commit(21.6, 21, 4, "01")]
    found = story.aftermath(kill(2, 21.0, 22.0), story.commits(events), events)
    assert found.next_commit == pytest.approx(0.6)


def test_a_return_belongs_to_the_last_deed_before_it() -> None:
    events, deeds = a_kill_on_the_way_back()
    first, second = story.tell(events, deeds, agents=3, calm=(0, 5), until=30).aftermaths
    assert first.back is None
    assert second.back == pytest.approx(4.502)


def test_a_round_that_is_no_step_is_no_next_step() -> None:
    events = [view(0, 1, "012"), *commit(10.2, 1, 2, "01", fence=False), *commit(10.4, 2, 2, "01")]
    found = story.aftermath(kill(2, 10.0, 11.0), story.commits(events), events)
    assert found.next_commit == pytest.approx(0.4)


def test_the_end_of_the_coordinator_costs_the_longest_pause_around_it() -> None:
    events = [view(0, 1, "01"), *commit(9.5, 0, 1, "01"), *commit(12, 1, 1, "01")]
    events += [view(12.1, 2, "01"), *commit(12.5, 2, 2, "01"), *commit(17, 3, 2, "01")]
    deed = Deed(kind="coordinator", labels=(faults.COORDINATOR,), began=10, ended=10)
    assert story.aftermath(deed, story.commits(events), events).pause == pytest.approx(2.5)


def test_those_who_take_part_are_counted_among_the_living() -> None:
    deeds = [kill(2, 10, 12), Deed(kind="stop", labels=(1,), began=20, ended=21)]
    steps = list(
        story.firsts(story.commits(commit(11, 0, 1, "01") + commit(12.5, 1, 2, "01") + commit(20.5, 2, 2, "12")))
    )
    assert story.taking_part(steps, deeds, 3) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert story.mean_living(deeds, 3, 0, 30) == pytest.approx((3 * 27 + 2 * 3) / 90)


def test_throughput_is_of_what_the_living_gave_in_calm_weather() -> None:
    calm = [e for t in range(10) for e in commit(t, t, 1, "01")]
    stormy = [e for t in range(10) for e in commit(10 + t, 10 + t, 2, "0")]
    deeds = [Deed(kind="stop", labels=(1,), began=10, ended=15)]
    account = story.tell(calm + stormy, deeds, agents=2, calm=(0, 10), until=20)
    assert account.steps == 10
    assert account.living == pytest.approx(0.75)
    assert account.throughput == pytest.approx(0.5 / 0.75)


def test_rounds_that_are_no_steps_do_not_count_as_steps() -> None:
    events = commit(1, 0, 1, "01") + commit(11, 1, 1, "01", fence=False) + commit(12, 2, 1, "01")
    assert story.tell(events, [], agents=2, calm=(0, 10), until=20).steps == 1


def test_suspicion_without_a_cause_is_a_false_alarm() -> None:
    deeds = [kill(2, 10, 12)]
    events = [
        suspect(9, 0, 1),
        suspect(11, 0, 2),
        suspect(16, 2, 0),
        suspect(18, 1, 2, "cut"),
        suspect(19, 0, 1, "slow"),
    ]
    assert list(story.false_alarms(events, deeds)) == [
        "agent 0 suspected 1 (silent: no pulse)",
        "agent 1 suspected 2 (cut: no pulse)",
    ]


def test_a_view_without_somebody_who_is_well_is_a_false_alarm() -> None:
    events = [view(1, 1, "012"), view(11, 2, "01"), view(13, 3, "012"), view(30, 4, "02")]
    assert list(story.false_alarms(events, [kill(2, 10, 12)])) == ["view 4 went on without agent 1 (so)"]


def test_whoever_went_on_without_the_victim_had_noticed() -> None:
    events = [view(1, 1, "012"), view(11.5, 2, "01")]
    assert story.aftermath(Deed(kind="cut", labels=(2,), began=10, ended=14), [], events).noticed == 1.5


def test_a_cut_of_the_first_host_cuts_off_the_coordinator_too() -> None:
    deeds = [Deed(kind="cut", labels=(0,), began=10, ended=15)]
    assert not list(story.false_alarms([suspect(12, 1, faults.COORDINATOR)], deeds))


def test_a_round_that_ended_differently_for_two_is_told() -> None:
    events = commit(1, 0, 1, "01") + commit(2, 1, 1, "01", agents="0") + commit(3, 1, 2, "0", agents="1")
    assert story.torn(story.commits(events)) == [1]


def test_summaries_give_the_median_and_the_worst_of_each_kind() -> None:
    after = [Aftermath(deed=kill(0, 0, 1), next_commit=x, back=5.0) for x in (0.1, 0.3, 0.2)]
    (found,) = summaries(after)
    assert (found.kind, found.count) == ("kill", 3)
    assert found.measures == {"next_commit": (0.2, 0.3), "back": (5.0, 5.0)}


DUMMY = """
import itertools, json, os, pathlib, time
label, folder = int(os.environ["STRETTO_RANK"]), pathlib.Path(os.environ["FOLDER"])
(folder / f"life-{label}-{os.getpid()}").touch()
while len(list(folder.glob("life-*"))) < 3:
    time.sleep(0.01)
with open(os.environ["STRETTO_TRACE"], "a", buffering=1) as trace:
    for number in itertools.count():
        view = len(list(folder.glob("life-*")))
        event = {"event": "commit", "agent": label, "time": time.monotonic(), "round": number, "fence": True}
        trace.write(json.dumps(event | {"view": view, "contributors": [0, 1, 2]}) + chr(10))
        if (folder / "end").exists():
            break
        time.sleep(0.01)
"""


@pytest.mark.network
@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/net/tun"), reason="a laboratory needs root and a TUN")
def test_faults_are_done_for_real_and_told_as_they_happened(tmp_path: Path) -> None:
    schedule = [
        Fault(0.0, "kill", (1,)),
        Fault(0.1, "stop", (2,), 0.3),
        Fault(0.2, "cut", (0,), 0.2),
        Fault(0.3, "coordinator", (faults.COORDINATOR,)),
    ]
    trace, said = tmp_path / "trace", list[str]()
    environ = {"FOLDER": str(tmp_path), "STRETTO_TRACE": str(trace)}
    with Laboratory(hosts=3) as lab, Fleet(lab, [sys.executable, "-c", DUMMY], tmp_path, environ=environ) as fleet:
        played = play(fleet, trace, schedule, calm=0.1, seconds=0.5, say=said.append)
        assert {life.label for life in fleet.lives()} == {0, 1, 2}
        (tmp_path / "end").touch()
        to_the_end(fleet)
    assert said == [
        "kill: agent 1",
        "stop: agent 2, for 0.3 s",
        "cut: agent 0, for 0.2 s",
        "coordinator: the coordinator",
    ]
    assert [(d.kind, d.labels) for d in played.deeds] == [(f.kind, f.labels) for f in schedule]
    assert all(d.ended >= d.began + f.seconds for d, f in zip(played.deeds, schedule, strict=True))
    assert len(list(tmp_path.glob("life-1-*"))) == 2
