"""Who keeps the others waiting is named, once a round; nobody is for being a little late."""

from __future__ import annotations

from stretto.membership.laggards import SHORTEST, Laggards


def settled(rounds: int = 20, takes: float = 0.1) -> tuple[Laggards, float]:
    """Three agents that have gone through some rounds side by side."""
    watch = Laggards()
    for number in range(1, rounds + 1):
        assert watch.observe(number * takes, dict.fromkeys((1, 2, 3), number)) == []
    return watch, rounds * takes


def test_who_does_not_come_to_the_round_of_the_others_is_named_once() -> None:
    watch, now = settled()
    assert watch.observe(now + 0.1, {1: 21, 2: 21, 3: 20}) == []
    late = watch.observe(now + 0.2 + SHORTEST, {1: 21, 2: 21, 3: 20})
    assert [(x.uid, x.round) for x in late] == [(3, 21)]
    assert "round 21" in late[0].words
    assert watch.observe(now + 60, {1: 21, 2: 21, 3: 20}) == []


def test_when_all_are_late_nobody_is() -> None:
    watch, now = settled()
    assert watch.observe(now + 60, dict.fromkeys((1, 2, 3), 20)) == []


def test_what_is_late_depends_on_how_long_rounds_take() -> None:
    watch, now = settled(takes=10.0)
    watch.observe(now + 10, {1: 21, 2: 20})
    assert watch.observe(now + 10 + 40, {1: 21, 2: 20}) == []
    assert [x.uid for x in watch.observe(now + 10 + 51, {1: 21, 2: 20})] == [2]


def test_who_is_late_again_in_another_round_is_named_again() -> None:
    watch, now = settled()
    for number in (21, 22):
        now += 10
        watch.observe(now, {1: number, 2: number - 1})
        now += 10
        assert [x.round for x in watch.observe(now, {1: number, 2: number - 1})] == [number]
