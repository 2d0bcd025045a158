"""What every listed strategy promises while agents die, come back, are cut off and misled: in simulated runs.

A hundred storms for each here; ``make storms`` plays ten thousand of each. A break prints its seed and the fewest
faults that make it; ``stretto simulate --strategy … --seed … --trace`` shows it event by event.
"""

from __future__ import annotations

import pytest

import stretto.strategies  # noqa: F401  registers their names
from stretto.core import Strategy
from stretto.simulate import Setting, Tally, coded, examine, listed

STORMS = 100

every_strategy = pytest.mark.parametrize("strategy", listed(), ids=str)


def check(tally: Tally) -> None:
    words = [f"seed {b.seed}, {b.agents} agents: {b.why}\n" + "\n".join(b.faults) for b in tally.breaks]
    assert not words, "\n".join(words)


@every_strategy
def test_without_faults_all_end_with_the_weights_of_one_process(strategy: Strategy) -> None:
    tally = examine(range(20), strategy, Setting("none"))
    check(tally)
    assert tally.outcomes == {"ended": 20}


@pytest.mark.parametrize("strategy", coded(), ids=str)
def test_with_every_codec_survivors_have_the_same_bits_and_every_sample_is_trained_once(strategy: Strategy) -> None:
    tally = examine(range(STORMS // 5), strategy, Setting("storm"))
    check(tally)
    assert tally.outcomes["ended"] > STORMS // 5 * 3 // 4


@every_strategy
def test_whatever_fails_survivors_have_the_same_bits_and_every_sample_is_trained_once(strategy: Strategy) -> None:
    tally = examine(range(STORMS), strategy, Setting("storm"))
    check(tally)
    assert tally.outcomes["ended"] > STORMS * 3 // 4, "in most storms somebody lives who has the model"
