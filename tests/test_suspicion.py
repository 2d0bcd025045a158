"""Suspicion: what silence means, from numbers alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.membership.suspicion import (
    ARRIVED_STOPPED,
    CEILING,
    FLOOR,
    Acks,
    Rhythm,
    Signs,
    Vigil,
    classify,
    ending,
)

PULSE = 0.2
HEALTHY = Acks(1, 0.1, 0.24)


def rhythm(gaps: list[float]) -> Rhythm:
    r, at = Rhythm(), 0.0
    for gap in [0.0, *gaps]:
        at += gap
        r.observe(at)
    return r


def watched(pulses: int, state: str = "R") -> tuple[Vigil, float]:
    """A vigil over one that pulses as it should, and the time of its last pulse."""
    vigil = Vigil()
    for i in range(pulses):
        vigil.pulse(i * PULSE, state)
    return vigil, (pulses - 1) * PULSE


def test_a_steady_rhythm_allows_the_floor_and_nothing_more() -> None:
    assert rhythm([PULSE] * 100).silent_after(0.24) == FLOOR


def test_a_ragged_rhythm_is_given_longer_and_never_more_than_the_ceiling() -> None:
    ragged = rhythm([0.2, 0.5, 0.3, 0.6] * 20).silent_after()
    assert FLOOR < ragged <= CEILING
    assert rhythm([0.2, 5.0, 0.2, 9.0] * 20).silent_after() == CEILING


def test_one_late_pulse_does_not_change_what_is_usual() -> None:
    assert rhythm([PULSE] * 40 + [30.0] + [PULSE] * 5).silent_after() == FLOOR


def test_where_sending_again_takes_long_more_is_allowed() -> None:
    assert FLOOR < rhythm([PULSE] * 20).silent_after(0.6) < rhythm([PULSE] * 20).silent_after(0.7) <= CEILING


@given(st.lists(st.floats(0, 1e6), max_size=100), st.floats(0, 1e6))
def test_whatever_came_before_a_silence_is_judged_between_floor_and_ceiling(gaps: list[float], resend: float) -> None:
    assert FLOOR <= rhythm(gaps).silent_after(resend) <= CEILING


@pytest.mark.parametrize("seed", range(4))
def test_half_an_hour_of_lost_packets_raises_no_false_alarm(seed: int) -> None:
    """20 Mbit/s, 40 ms, 0.5 % loss, saturated: every loss costs the kernel's wait; what comes behind waits too."""
    rng = random.Random(seed)
    resend, delay, loss = 0.24, 0.02, 0.005
    vigil, arrives = Vigil(), 0.0
    for i in range(round(1800 / PULSE)):
        late = delay + rng.expovariate(1 / 0.02)
        while rng.random() < loss:
            late += resend
        arrives = max(arrives, i * PULSE + late)
        assert vigil.judge(arrives, Acks(1, 0.1, resend)) is None
        vigil.pulse(arrives, "R")


def test_nobody_is_silent_before_the_first_pulse() -> None:
    vigil = Vigil()
    vigil.word(0.0)
    assert vigil.is_well(1e6) and vigil.judge(1e6, Acks(9, 1e6, 1.0)) is None


def test_a_machine_that_acknowledges_nothing_is_cut_off() -> None:
    vigil, at = watched(20)
    suspicion = vigil.judge(at + 1.6, Acks(8, 1.5, 0.24))
    assert suspicion is not None and suspicion.what == "cut" and "nor an acknowledgement for 1.5 s" in suspicion.why


def test_a_cut_is_noticed_within_three_seconds_whatever_the_rhythm_was() -> None:
    vigil = Vigil()
    at = 0.0
    for gap in [0.1, 2.0, 0.5, 1.5] * 20:
        at += gap
        vigil.pulse(at, "R")
    suspicion = vigil.judge(at + 3.0 - 2 * PULSE, Acks(9, 2.6, 5.0))
    assert suspicion is not None and suspicion.what == "cut"


def test_a_machine_that_acknowledges_for_a_silent_process_says_that_it_is_stopped() -> None:
    vigil, at = watched(20)
    suspicion = vigil.judge(at + 1.6, HEALTHY)
    assert suspicion is not None and suspicion.what == "stopped" and "has said nothing for 1.6 s" in suspicion.why


def test_any_byte_is_a_word_though_its_message_is_not_complete() -> None:
    vigil, at = watched(20)
    vigil.word(at + 1.4)
    assert vigil.judge(at + 2.0, HEALTHY) is None


@pytest.mark.parametrize("state", ["T", "t"])
def test_a_stopped_trainer_is_told_though_its_courier_pulses(state: str) -> None:
    vigil, at = watched(20)
    for i in range(20):
        vigil.pulse(at + (i + 1) * PULSE, state)
    suspicion = vigil.judge(at + 20 * PULSE, HEALTHY)
    assert suspicion is not None and suspicion.what == "stopped" and f"state {state}" in suspicion.why


@pytest.mark.parametrize("state", ["R", "S", "D", "Z", "X", ""])
def test_a_trainer_that_waits_or_is_gone_is_not_a_stopped_one(state: str) -> None:
    vigil, at = watched(100, state)
    assert vigil.is_well(at) and vigil.judge(at, HEALTHY) is None


def test_a_trainer_that_goes_on_in_time_is_not_suspected() -> None:
    vigil, at = watched(20)
    vigil.pulse(at + 0.2, "T")
    vigil.pulse(at + 1.4, "S")
    vigil.pulse(at + 1.6, "T")
    assert not vigil.is_well(at + 1.8) and vigil.judge(at + 1.8, HEALTHY) is None


def test_a_trainer_that_comes_stopped_is_waited_for_longer() -> None:
    """Its courier has been left out and called again: it need not be told the same every second."""
    vigil, at = watched(20, "T")
    assert vigil.judge(at, HEALTHY) is None
    vigil, at = watched(round(ARRIVED_STOPPED / PULSE) + 2, "T")
    assert vigil.judge(at, HEALTHY) is not None


def test_what_we_slept_through_is_forgiven() -> None:
    vigil, at = watched(20)
    assert vigil.judge(at + 60.0, HEALTHY) is not None
    vigil.forgive(59.0)
    assert vigil.judge(at + 60.0, HEALTHY) is None
    assert vigil.judge(at + 61.0, HEALTHY) is not None


def test_a_stop_that_we_slept_through_is_forgiven_too() -> None:
    vigil, at = watched(20)
    vigil.pulse(at + 0.2, "T")
    vigil.forgive(50.0)
    vigil.pulse(at + 50.4, "T")
    assert vigil.judge(at + 50.4, HEALTHY) is None


def test_the_last_one_of_a_healthy_run_is_slow_and_not_lost() -> None:
    assert classify(Signs(last=True), FLOOR) is not None
    suspicion = classify(Signs(quiet=0.3, last=True), FLOOR)
    assert suspicion is not None and suspicion.what == "slow"
    assert classify(Signs(quiet=0.3), FLOOR) is None


def test_a_reset_after_a_silence_is_a_machine_that_forgot_us() -> None:
    assert ending("reset", 0.1).what == "closed"
    assert ending("reset", 1.2).what == "half-open" and "after 1.2 s of silence" in ending("reset", 1.2).why


def test_every_ending_has_its_word() -> None:
    assert [ending(how).what for how in ("closed", "refused", "unreachable")] == ["closed", "half-open", "cut"]
